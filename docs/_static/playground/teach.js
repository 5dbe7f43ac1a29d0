// The second tab: a teacher that was guided by all boxes, and a student that learns from it on a few scenes.
import * as tf from "./made/tf.js";
import { features, forward, head, variables } from "./model.js";
import { cosine, resize } from "./losses.js";
import { distil, evaluate, mapsOf } from "./guide.js";
import { at, paint, percent, picture, wait } from "./draw.js";

/** Sets up the tab. The student begins as the first tab's network did. */
export async function teach({ data, found, more, others, made, shown }) {
  wait("panel-teach", true);
  const teacher = head(await more, "teacher."), known = await others, { lessons, side } = data;
  const x = tf.tidy(() => tf.concat(lessons.map((k) => features(found.scenes, 2 * k, 1))));
  const greys = await Promise.all(lessons.map((k) => picture(new URL(`${k}.webp`, made))));
  const goal = forward(teacher, x), tops = [...(await goal.logits.argMax(1).data())];
  const goals = mapsOf(goal.maps, tops), right = await evaluate(teacher, known);

  const row = (title, cell) => {
    at("lessons").insertAdjacentHTML("beforeend", `<div class="title">${title}</div>${lessons.map(cell).join("")}`);
    return [...at("lessons").children].slice(-lessons.length);
  };
  const canvas = (whose) => (k) =>
    `<canvas width="${side}" height="${side}" role="img" aria-label="${whose} map of: ${data.scenes[k].text}"></canvas>`;
  const paints = (places, maps) => maps.arraySync().forEach((map, k) => paint(places[k], greys[k], resize(map, side)));
  row("the scenes", (k) => `<img src="${new URL(`${k}.webp`, made)}" alt="${data.scenes[k].text}">`);
  paints(row("what the teacher looks at", canvas("The teacher's")), goals);
  const places = row("what the student looks at", canvas("The student's"));

  let student = head(found, ""), first;
  const exact = (f1) => `${f1.toFixed(1)} %`, cosines = (value) => value.toFixed(2);
  const texts = { alike: cosines, agreement: percent, "f1-student": exact, "epg-student": percent };
  /** Trains a fresh student by KD or e²KD, and fills its column; at the start it stays fresh. */
  const lesson = (kind) => async () => {
    const start = kind === "start", cell = (id) => at(`${id}-${kind}`);
    const show = (id, value) => ([shown[id], cell(id).textContent] = [value, texts[id](value)]);
    const see = (maps) => {
      paints(places, maps);
      show("alike", tf.tidy(() => cosine(maps, goals, side).mean().dataSync()[0]));
    };
    wait("panel-teach", true);
    at("lesson").textContent = start ? "Measuring …" : "Teaching …";
    for (const one of start ? document.querySelectorAll("#scores td[id]") : []) one.textContent = "";
    for (const id in texts) cell(id).textContent = "…";
    tf.dispose(variables(student));
    [student, at("progress-teach").value] = [head(found, ""), 0];
    if (!start) await distil(student, teacher, x, { kind, side }, (step, seen) => {
      at("progress-teach").value = step + 1;
      see(seen.maps);
    });
    tf.tidy(() => see(mapsOf(forward(student, x).maps, tops)));
    const { agreement, f1, epg } = await evaluate(student, known, right.tops);
    Object.entries({ agreement, "f1-student": f1, "epg-student": epg }).forEach(([id, value]) => show(id, value));
    first ??= { ...shown };
    const way = (id, least, ...words) => words[1 + (shown[id] > first[id] + least) - (shown[id] < first[id] - least)];
    const maps = way("alike", 0.02, "less alike than", "as alike as", "more alike than");
    const answers = way("agreement", 2, "fewer", "about as many", "more");
    at("lesson").textContent = start ? "The teacher learned with boxes: it looks at objects. The student looks elsewhere. Teach it."
      : `20 steps of ${at(kind).textContent}: maps ${maps} at first, ${answers} answers like the teacher's. Compare with the other button.`;
    wait("panel-teach", false);
    if (start && document.activeElement.id === "forget") at("teach-kd").focus(); // `disabled` would lose it
    at("forget").disabled = start;
  };
  for (const button of at("panel-teach").querySelectorAll("button")) button.onclick = lesson(button.value);
  await at("forget").onclick();
}
