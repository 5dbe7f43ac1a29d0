// Losses and scores of maps (B, h, w) and masks (B, side, side), as in e2lib.guidance, e2lib.distillation and e2lib.metrics.
import * as tf from "./made/tf.js";

/** The matrix (side, cells) that resizes an axis bilinearly, pixel centres at half a pixel, as torch does. */
function stretch(cells, side) {
  return tf.tidy(() => {
    const place = tf.clipByValue(tf.sub(tf.mul(tf.add(tf.range(0, side), 0.5), cells / side), 0.5), 0, cells - 1);
    return tf.relu(tf.sub(1, tf.abs(tf.sub(place.expandDims(1), tf.range(0, cells).expandDims(0)))));
  });
}

const stretches = {};

/** Maps (B, h, h), in cells, brought to (B, side, side) pixels. */
export function resize(maps, side) {
  const [images, cells] = maps.shape;
  const matrix = (stretches[[cells, side]] ??= tf.keep(stretch(cells, side)));
  const axis = (x, length) => tf.matMul(x.reshape([-1, cells]), matrix, false, true).reshape([images, length, side]);
  const wide = axis(maps, cells).transpose([0, 2, 1]);
  return axis(wide, side).transpose([0, 2, 1]);
}

/** 1 in the pixels of boxes [x1, y1, x2, y2], one per image, else 0. */
export function masks(boxes, side) {
  return tf.tidy(() => {
    const pixel = tf.add(tf.range(0, side), 0.5).expandDims(0);
    const [x1, y1, x2, y2] = [0, 1, 2, 3].map((k) => tf.tensor(boxes.map((box) => box[k])).expandDims(1));
    const inside = (low, high) => tf.logicalAnd(tf.greaterEqual(pixel, low), tf.less(pixel, high)).toFloat();
    return tf.mul(inside(y1, y2).expandDims(2), inside(x1, x2).expandDims(1));
  });
}

/** The share of positive attribution inside the masks, per image. */
export function epg(maps, inside) {
  const positive = tf.relu(resize(maps, inside.shape[1]));
  return tf.div(tf.mul(positive, inside).sum([1, 2]), tf.maximum(positive.sum([1, 2]), 1e-30));
}

/** The two guidance losses, of |map|, per image. */
export const LOSSES = {
  energy: (maps, inside) => tf.sub(1, epg(tf.abs(maps), inside)),
  l1(maps, inside) {
    const size = tf.abs(maps);
    const full = resize(tf.div(size, size.max([1, 2], true)), inside.shape[1]);
    return tf.abs(tf.sub(inside, full)).mean([1, 2]);
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

/** Cosine of two maps, per image, in pixels. e²KD's loss is 1 − this. */
export function cosine(student, teacher, side) {
  const [a, b] = [student, teacher].map((maps) => resize(maps, side).reshape([maps.shape[0], -1]));
  const norm = (x) => tf.sqrt(x.square().sum(1));
  return tf.div(tf.mul(a, b).sum(1), tf.mul(norm(a), norm(b)));
}
