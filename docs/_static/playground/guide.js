// What trains a head: guidance by one box, and distillation. And what is measured on other scenes.
import * as tf from "./made/tf.js";
import { features, forward, variables } from "./model.js";
import { LOSSES, bce, cosine, epg, kd, resize } from "./losses.js";

export const STEPS = 20;
const RATE = 1e-3, E2KD = 5; // of Adam; the weight of e²KD beside KD

/** The maps (B, cells) of one class per image. */
export function mapsOf(maps, classes) {
  return tf.mul(maps, tf.oneHot(tf.tensor1d(classes, "int32"), maps.shape[2]).toFloat().expandDims(1)).sum(2);
}

/** STEPS steps of Adam. `loss` returns { loss, …tensors to see }; `after` gets what it returned, and the step. */
async function train(net, loss, after) {
  const optimizer = tf.train.adam(RATE, 0.9, 0.999, 1e-8);
  for (let step = 0; step < STEPS; step++) {
    let seen;
    optimizer.minimize(() => {
      seen = loss();
      Object.values(seen).forEach((tensor) => tf.keep(tensor));
      return seen.loss;
    }, true, variables(net));
    await after(step, seen);
    tf.dispose(seen);
    await tf.nextFrame(); // so that the page is drawn, and can be used
  }
  optimizer.dispose();
}

/** Guides a head by one box: binary cross-entropy + λ · loss(|map|), on features x (1, cells, channels) of one scene.
 * What `after` sees of a step is the network before it: logits, map (1, cells) of class c, and the loss. */
export const guide = (net, x, { label, box, c, loss, weight, side }, after) => train(net, () => {
  const found = forward(net, x), maps = mapsOf(found.maps, [c]);
  const labels = tf.oneHot(tf.tensor1d([label], "int32"), found.logits.shape[1]).toFloat();
  const guidance = tf.mul(weight, LOSSES[loss](maps, box, side).mean());
  return { loss: tf.add(bce(found.logits, labels), guidance), logits: found.logits, maps };
}, after);

/** Distils a teacher into a student on features x of a few scenes, by KD, or by KD + E2KD · e²KD. */
export async function distil(student, teacher, x, { kind, side }, after) {
  const { logits: goal, maps: goals } = forward(teacher, x);
  const tops = [...(await goal.argMax(1).data())], there = mapsOf(goals, tops);
  await train(student, () => {
    const found = forward(student, x), maps = mapsOf(found.maps, tops);
    let loss = kd(found.logits, goal).mean();
    if (kind === "e2kd") loss = tf.add(loss, tf.mul(E2KD, tf.sub(1, cosine(maps, there, side)).mean()));
    return { loss, logits: found.logits, maps };
  }, after);
  tf.dispose([goal, goals, there]);
}

/** F1 (logits above 0 are yes), EPG and, with a teacher's top classes, agreement, in per cent, on labelled scenes. */
export async function evaluate(net, { x, labels, boxes, side }, goal) {
  const rows = [], inside = [], count = labels.length;
  for (let k = 0; k < count; k += 10) {
    const some = labels.slice(k, k + 10), [logits, maps] = tf.tidy(() => {
      const answer = forward(net, features(x, k, some.length));
      return [answer.logits, mapsOf(answer.maps, some)];
    });
    rows.push(...(await logits.array()));
    (await maps.array()).forEach((map, i) => inside.push(epg(resize(map, side), side, boxes[k + i])));
    tf.dispose([logits, maps]);
    await tf.nextFrame();
  }
  const tops = rows.map((row) => row.indexOf(Math.max(...row))), energy = inside.reduce((sum, value) => sum + value, 0);
  const right = rows.filter((row, k) => row[labels[k]] > 0).length, named = rows.flat().filter((value) => value > 0).length;
  const agreement = goal && (100 * tops.filter((top, k) => top === goal[k]).length) / count;
  return { f1: (200 * right) / (named + count), epg: (100 * energy) / count, agreement, tops };
}
