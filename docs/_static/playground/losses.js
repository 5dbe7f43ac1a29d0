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

/** What each cell weighs in the sum over the pixels of a box [x1, y1, x2, y2]: (cells, 1). */
function weights(cells, side, [x1, y1, x2, y2]) {
  const axis = tf.tensor(shares(Math.sqrt(cells), side)), sum = (from, to) => axis.slice([from, 0], [to - from, -1]).sum(0);
  return tf.outerProduct(sum(y1, y2), sum(x1, x2)).reshape([cells, 1]);
}

/** The two guidance losses, of |map|, per image. */
export const LOSSES = {
  energy(maps, box, side) {
    const sum = (where) => tf.matMul(tf.abs(maps), weights(maps.shape[1], side, where));
    return tf.sub(1, tf.div(sum(box), tf.maximum(sum([0, 0, side, side]), 1e-30)));
  },
  l1(maps, [x1, y1, x2, y2], side) {
    const size = tf.abs(maps), full = tf.div(size, tf.maximum(size.max(1, true), 1e-30));
    const sum = (where) => tf.matMul(full, weights(maps.shape[1], side, where));
    const missing = tf.sub((x2 - x1) * (y2 - y1), sum([x1, y1, x2, y2])); // Σ M (1 − Â)
    return tf.div(tf.add(missing, tf.sub(sum([0, 0, side, side]), sum([x1, y1, x2, y2]))), side * side); // + Σ (1 − M) Â
  },
};

/** Binary cross-entropy of logits (B, C) and labels of 0 and 1, mean over images and classes. */
export const bce = (logits, labels) => tf.sub(tf.softplus(logits), tf.mul(logits, labels)).mean();

/** Σ_c KL(σ(teacher) ‖ σ(student)), per image. */
export function kd(student, teacher) {
  const side = (sign) => {
    // tf.logSigmoid would lose what its gradient needs
    const [there, here] = [teacher, student].map((logits) => tf.neg(tf.softplus(tf.mul(-sign, logits))));
    return tf.mul(tf.exp(there), tf.sub(there, here));
  };
  return tf.add(side(1), side(-1)).sum(1);
}

/** Cosine of two maps in pixels, per image. e²KD's loss is 1 − this. */
export function cosine(student, teacher, side) {
  const cells = student.shape[1], size = Math.sqrt(cells), axis = tf.tensor(shares(size, side));
  const one = tf.matMul(axis, axis, true).flatten(); // products of two cells' shares, along an axis
  const both = tf.outerProduct(one, one).reshape([size, size, size, size]).transpose([0, 2, 1, 3]).reshape([cells, cells]);
  const inner = (a, b) => tf.mul(tf.matMul(a, both), b).sum(1);
  return tf.div(inner(student, teacher), tf.sqrt(tf.mul(inner(student, student), inner(teacher, teacher))));
}

/** A map of cells in pixels, row by row. */
export function resize(map, side) {
  const size = Math.sqrt(map.length), axis = shares(size, side), result = new Float32Array(side ** 2);
  axis.forEach((down, y) => {
    const row = axis[y].map((_, c) => down.reduce((sum, share, r) => sum + share * map[r * size + c], 0));
    axis.forEach((right, x) => row.forEach((value, c) => (result[y * side + x] += right[c] * value)));
  });
  return result;
}

/** EPG: the share of positive attribution in the box, of a map in pixels. */
export function epg(map, side, [x1, y1, x2, y2]) {
  const inside = map.filter((value, k) => k % side >= x1 && k % side < x2 && k >= y1 * side && k < y2 * side);
  const sum = (values) => values.reduce((total, value) => total + Math.max(0, value), 0), total = sum(map);
  return total && sum(inside) / total;
}
