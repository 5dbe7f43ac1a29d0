// The network's head: last 1x1 convolution, norm, ReLU6, mean over the cells, linear classifier. And files of numbers.
import * as tf from "./made/tf.js";

export const TRAINED = ["convolution", "scale", "shift", "classifier", "bias"];

/** Whether a graphics card draws, and not the processor in its place, which is slower than tfjs alone. */
function card() {
  const pen = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  const names = pen?.getExtension("WEBGL_debug_renderer_info");
  return pen && !/swiftshader|llvmpipe|software/i.test(names ? pen.getParameter(names.UNMASKED_RENDERER_WEBGL) : "");
}

/** Computes on a graphics card that has float32, else on the processor; or where `backend`, webgl or cpu, says. */
export async function start(backend) {
  const wanted = backend === "webgl" || (backend !== "cpu" && card());
  const works = wanted && (await tf.setBackend("webgl")) && tf.env().getBool("WEBGL_RENDER_FLOAT32_ENABLED");
  return works || tf.setBackend("cpu");
}

const HALVES = Float32Array.from({ length: 2 ** 16 }, (_, bits) => {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return (bits >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
});
const floats = (bytes, type) =>
  type === "F16" ? Float32Array.from(new Uint16Array(bytes), (bits) => HALVES[bits]) : new Float32Array(bytes);

/** All tensors of a safetensors file, by name, as float32. */
export async function read(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address} answers ${answer.status}`);
  const bytes = await answer.arrayBuffer(), length = Number(new DataView(bytes).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8, length)));
  const named = Object.entries(header).filter(([name]) => name !== "__metadata__");
  return Object.fromEntries(named.map(([name, { dtype, shape, data_offsets: [from, to] }]) =>
    [name, tf.tensor(floats(bytes.slice(8 + length + from, 8 + length + to), dtype), shape)]));
}

/** Features (count, cells, channels) of some of all scenes. */
export const features = (all, from, count) => all.slice([from, 0, 0], [count, -1, -1]);

/** A head of a file's tensors, whose names begin with `prefix`; or, without it, a copy of a head. */
export function head(found, prefix) {
  const trained = TRAINED.map((name) => [name, tf.variable(found[prefix + name])]);
  return { mean: found[prefix + "mean"], inverse: found[prefix + "inverse"], ...Object.fromEntries(trained) };
}

export const variables = (net) => TRAINED.map((name) => net[name]);

/** Features (B, cells, channels) to logits (B, classes) and maps (B, cells, classes).
 * The maps are Input x Gradient of each logit at the head's ReLU6, e2lib's depth Final. Behind it come only a mean and
 * a linear layer, so the gradient is classifier / cells, and first derivatives train the map exactly. */
export function forward(net, x) {
  const [images, cells, channels] = x.shape;
  const seen = tf.matMul(x.reshape([images * cells, channels]), net.convolution);
  const normed = tf.add(tf.mul(tf.mul(tf.sub(seen, net.mean), net.inverse), net.scale), net.shift);
  const maps = tf.div(tf.matMul(tf.relu6(normed), net.classifier), cells).reshape([images, cells, -1]);
  return { logits: tf.add(maps.sum(1), net.bias), maps };
}
