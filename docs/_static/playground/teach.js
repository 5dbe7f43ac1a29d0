// The second tab: a teacher that was guided by all boxes, and a student that learns from it on a few scenes.
import * as tf from "./made/tf.js";
import { features, forward, head, variables } from "./model.js";
import { cosine, resize } from "./losses.js";
import { distil, evaluate, mapsOf } from "./guide.js";
import { paint, picture } from "./draw.js";

const at = (id) => document.getElementById(id);

/** Sets up the tab. The student begins as the first tab's network did. */
export async function teach({ data, found, more, others, made, shown }) {
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

  let student = head(found, ""), before = null, busy = false;
  const whole = (share) => `${Math.round(share)} %`;
  const texts = { agreement: whole, "f1-student": (f1) => f1.toFixed(1), "epg-student": whole, alike: (value) => value.toFixed(2) };
  const show = (id, value) => {
    [shown[id], at(id).textContent] = [value, (before ? `${texts[id](before[id])} → ` : "") + texts[id](value)];
  };
  const see = (maps) => {
    paints(places, maps);
    show("alike", tf.tidy(() => cosine(maps, goals, side).mean().dataSync()[0]));
  };
  const wait = (yes, words) => {
    [busy, at("lesson").textContent] = [yes, words];
    at("panel-teach").setAttribute("aria-busy", yes); // `disabled` would take the focus from a button
  };
  /** Trains a fresh student by KD or e²KD; without a kind it stays fresh. */
  const lesson = (kind, words) => async () => {
    if (busy) return;
    wait(true, kind ? "Teaching …" : "Measuring …");
    for (const id in texts) at(id).textContent = kind ? at(id).textContent.replace(/ → .*|$/, " → …") : "…";
    tf.dispose(variables(student));
    [student, at("progress-teach").value] = [head(found, ""), 0];
    if (!kind) before = null;
    else await distil(student, teacher, x, { kind, side }, (step, seen) => {
      at("progress-teach").value = step + 1;
      see(seen.maps);
    });
    tf.tidy(() => see(mapsOf(forward(student, x).maps, tops)));
    const { agreement, f1, epg } = await evaluate(student, known, right.tops);
    Object.entries({ agreement, "f1-student": f1, "epg-student": epg }).forEach(([id, value]) => show(id, value));
    before ??= { ...shown };
    wait(false, words);
  };
  const taught = `: 20 steps on ${lessons.length} scenes. Compare the maps, then try the other button.`;
  at("teach-kd").onclick = lesson("kd", `KD${taught}`);
  at("teach-e2kd").onclick = lesson("e2kd", `KD + e²KD${taught}`);
  at("forget").onclick = lesson("", "The teacher learned with boxes: it looks at objects. The student looks elsewhere. Teach it.");
  await at("forget").onclick();
}
