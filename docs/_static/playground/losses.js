// Losses of maps (B, cells) and scores of one map, as in e2lib.guidance, e2lib.distillation and e2lib.metrics.
//
// There a map is first resized to pixels, bilinearly. That is linear: so a sum over pixels is a sum over cells with
// weights. Maps |A| stay positive when they are resized, and Â = |A| / max |A| stays between 0 and 1. So both guidance
// losses are exact in cells.
import * as tf from "./made/tf.js";

/** Where a pixel's centre lies between the centres of cells, along an axis, as torch resizes: [lower cell, part of the next]. */
function place(pixel, cells, side) {
  const at = Math.max(0, Math.min(cells - 1, ((pixel + 0.5) * cells) / side - 0.5)), low = Math.min(Math.floor(at), cells - 2);
  return [low, at - low];
}

/** How much each of `cells` gives to each of `side` pixels along an axis. */
function shares(cells, side) {
  return Array.from({ length: side }, (_, pixel) => {
    const [low, part] = place(pixel, cells, side), share = new Array(cells).fill(0);
    [share[low], share[low + 1]] = [1 - part, part];
    return share;
  });
}

const outer = (rows, columns) => rows.flatMap((row) => columns.map((column) => row * column));
const sums = (rows) => rows.reduce((total, row) => total.map((value, k) => value + row[k]));

/** What each cell weighs in the sum over the pixels of a box [x1, y1, x2, y2]: (cells, 1). */
function weights(cells, side, [x1, y1, x2, y2]) {
  const axis = shares(Math.sqrt(cells), side);
  return tf.tensor(outer(sums(axis.slice(y1, y2)), sums(axis.slice(x1, x2))), [cells, 1]);
}

/** The two guidance losses, of |map|, per image. */
export const LOSSES = {
  energy(maps, box, side) {
    const size = tf.abs(maps), sum = (where) => tf.matMul(size, weights(maps.shape[1], side, where));
    return tf.sub(1, tf.div(sum(box), tf.maximum(sum([0, 0, side, side]), 1e-30)));
  },
  l1(maps, [x1, y1, x2, y2], side) {
    const size = tf.abs(maps), full = tf.div(size, tf.maximum(size.max(1, true), 1e-30));
    const sum = (where) => tf.matMul(full, weights(maps.shape[1], side, where));
    const inside = tf.sub((x2 - x1) * (y2 - y1), sum([x1, y1, x2, y2])); // Σ M (1 − Â)
    const outside = tf.sub(sum([0, 0, side, side]), sum([x1, y1, x2, y2])); // Σ (1 − M) Â
    return tf.div(tf.add(inside, outside), side * side);
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
  const cells = student.shape[1], axis = shares(Math.sqrt(cells), side);
  const products = sums(axis.map((row) => outer(row, row))), size = axis[0].length;
  const gram = Array.from({ length: cells ** 2 }, (_, k) => {
    const [i, j] = [Math.floor(k / cells), k % cells], part = (a, b) => products[a * size + b];
    return part(Math.floor(i / size), Math.floor(j / size)) * part(i % size, j % size);
  });
  const inner = (a, b) => tf.mul(tf.matMul(a, tf.tensor(gram, [cells, cells])), b).sum(1);
  return tf.div(inner(student, teacher), tf.sqrt(tf.mul(inner(student, student), inner(teacher, teacher))));
}

/** A map of cells in pixels, row by row. */
export function resize(map, side) {
  const size = Math.sqrt(map.length), places = Array.from({ length: side }, (_, pixel) => place(pixel, size, side));
  const result = new Float32Array(side ** 2);
  places.forEach(([r, down], y) => places.forEach(([c, right], x) => {
    const row = (k) => (1 - right) * map[k * size + c] + right * map[k * size + c + 1];
    result[y * side + x] = (1 - down) * row(r) + down * row(r + 1);
  }));
  return result;
}

/** EPG: the share of positive attribution in the box, of a map in pixels. */
export function epg(map, side, [x1, y1, x2, y2]) {
  let [inside, total] = [0, 0];
  map.forEach((value, k) => {
    const x = k % side, y = Math.floor(k / side);
    total += Math.max(0, value);
    if (x >= x1 && x < x2 && y >= y1 && y < y2) inside += Math.max(0, value);
  });
  return total && inside / total;
}
