// Losses of maps (B, cells) and scores of one map, as in e2lib.guidance, e2lib.distillation and e2lib.metrics.
//
// There a map is resized to pixels first. That is linear, so a sum over pixels is a weighted sum over cells. As |A| stays
// positive in it, and Â = |A| / max |A| between 0 and 1, both guidance losses are exact in cells.
import * as tf from "./made/tf.js";

/** How much each of `cells` gives to each of `side` pixels along an axis: linear between centres, as torch resizes. */
function shares(cells, side) {
  return Array.from({ length: side }, (_, pixel) => {
    const at = Math.max(0, Math.min(cells - 1, ((pixel + 0.5) * cells) / side - 0.5));
    return Array.from({ length: cells }, (_, cell) => Math.max(0, 1 - Math.abs(at - cell)));
  });
}

/** The sum of maps (B, cells) over the pixels of a box: (B, 1). */
function sum(maps, side, [x1, y1, x2, y2]) {
  const cells = maps.shape[1], axis = tf.tensor(shares(Math.sqrt(cells), side));
  const weights = (from, to) => axis.slice([from, 0], [to - from, -1]).sum(0);
  return tf.matMul(maps, tf.outerProduct(weights(y1, y2), weights(x1, x2)).reshape([cells, 1]));
}

/** The two guidance losses, of |map|, per image. */
export const LOSSES = {
  energy(maps, box, side) {
    const size = tf.abs(maps), all = sum(size, side, [0, 0, side, side]);
    return tf.sub(1, tf.div(sum(size, side, box), tf.maximum(all, 1e-30)));
  },
  l1(maps, box, side) {
    const size = tf.abs(maps), full = tf.div(size, tf.maximum(size.max(1, true), 1e-30)), [x1, y1, x2, y2] = box;
    const more = tf.sub(sum(full, side, [0, 0, side, side]), tf.mul(2, sum(full, side, box)));
    return tf.div(tf.add((x2 - x1) * (y2 - y1), more), side * side); // Σ M (1 − Â) + Σ (1 − M) Â = Σ M + Σ Â − 2 Σ M Â
  },
};

/** Binary cross-entropy of logits (B, C) and labels of 0 and 1, mean over images and classes. */
export const bce = (logits, labels) => tf.sub(tf.softplus(logits), tf.mul(logits, labels)).mean();

/** Σ_c KL(σ(t) ‖ σ(s)) = Σ_c σ(t) (t − s) + log(1 + eˢ) − log(1 + eᵗ), of logits of student and teacher, per image. */
export const kd = (s, t) => tf.add(tf.mul(tf.sigmoid(t), tf.sub(t, s)), tf.sub(tf.softplus(s), tf.softplus(t))).sum(1);

/** Cosine of two maps in pixels, per image. e²KD's loss is 1 − this. */
export function cosine(student, teacher, side) {
  const cells = student.shape[1], size = Math.sqrt(cells), axis = tf.tensor(shares(size, side));
  const one = tf.matMul(axis, axis, true).flatten(); // products of two cells' shares, along an axis
  const both = tf.outerProduct(one, one).reshape([size, size, size, size]).transpose([0, 2, 1, 3]).reshape([cells, cells]);
  const inner = (a, b) => tf.mul(tf.matMul(a, both), b).sum(1);
  return tf.div(inner(student, teacher), tf.sqrt(tf.mul(inner(student, student), inner(teacher, teacher))));
}

/** A map of cells in pixels, row by row. */
export const resize = (map, side) => tf.tidy(() => {
  const size = Math.sqrt(map.length), axis = tf.tensor(shares(size, side));
  return tf.matMul(tf.matMul(axis, tf.tensor(map, [size, size])), axis, false, true).dataSync();
});

/** The values of a map in pixels that lie in a box. */
export const inside = (map, side, [x1, y1, x2, y2]) =>
  map.filter((_, k) => k % side >= x1 && k % side < x2 && k >= y1 * side && k < y2 * side);

/** EPG: the share of positive attribution in the box, of a map in pixels. */
export function epg(map, side, box) {
  const sum = (values) => values.reduce((total, value) => total + Math.max(0, value), 0), total = sum(map);
  return total && sum(inside(map, side, box)) / total;
}
