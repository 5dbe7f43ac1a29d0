// The second tab: a teacher that was guided by all boxes, and a student that learns from it on a few scenes.
import * as tf from "./made/tf.js";
import { features, forward, head } from "./model.js";
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

  let student = head(found, ""), before = null;
  const show = (id, value, digits) => {
    [shown[id], at(id).textContent] = [value, (before ? `${before[id].toFixed(digits)} → ` : "") + value.toFixed(digits)];
  };
  const see = (maps) => {
    paints(places, maps);
    show("alike", tf.tidy(() => cosine(maps, goals, side).mean().dataSync()[0]), 2);
  };
  const measure = async () => {
    tf.tidy(() => see(mapsOf(forward(student, x).maps, tops)));
    const { agreement, f1, epg } = await evaluate(student, known, right.tops);
    const found = { agreement, "f1-student": f1, "epg-student": epg };
    Object.entries(found).forEach(([id, value]) => show(id, value, 1));
    before ??= { alike: shown.alike, ...found };
  };
  const fresh = () => {
    Object.values(student).forEach((tensor) => tensor instanceof tf.Variable && tensor.dispose());
    student = head(found, "");
  };
  const lock = (all, reset = all) => ["teach-kd", "teach-e2kd", "forget"].forEach((id, k) => (at(id).disabled = k < 2 ? all : reset));
  const lesson = (kind, name) => async () => {
    lock(true);
    fresh();
    await distil(student, teacher, x, { kind, side }, (step, seen) => {
      at("progress-teach").value = step + 1;
      see(seen.maps);
    });
    await measure();
    at("lesson").textContent = `${name}, 20 steps on ${lessons.length} scenes. Try the other one, and compare the maps.`;
    lock(false);
  };
  at("teach-kd").onclick = lesson("kd", "KD");
  at("teach-e2kd").onclick = lesson("e2kd", "KD + e²KD");
  const restart = async () => {
    lock(true);
    fresh();
    [before, at("progress-teach").value] = [null, 0];
    await measure();
    at("lesson").textContent = "The teacher learned with boxes: it looks at the objects. The student looks elsewhere. Teach it.";
    lock(false, true);
  };
  at("forget").onclick = restart;
  await restart();
}
