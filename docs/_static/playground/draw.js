// What is drawn: photographs in grey under a map in red and blue, and a visitor's box. And what both tabs say alike.
import * as tf from "./made/tf.js";

const FOR = [178, 24, 43], AGAINST = [33, 102, 172];
const LEAST = 8, DRAWN = 16; // pixels, of a side of a box, and of a new one: less is a tap or a swipe
const ARROWS = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] }; // pixels
const between = (value, low, high) => Math.max(low, Math.min(high, Math.round(value)));
export const at = (id) => document.getElementById(id);
export const percent = (share) => `${Math.round(share)} %`;
export const blank = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

/** While a panel waits, its buttons keep the focus, which `disabled` would take, and look disabled. view stops their clicks. */
export function wait(panel, yes) {
  at(panel).setAttribute("aria-busy", yes);
  for (const button of at(panel).querySelectorAll("button:not(.free)")) button.setAttribute("aria-disabled", yes);
}

/** A photograph's grey values, pale, one per pixel. */
export async function picture(address) {
  const image = Object.assign(new Image(), { src: address });
  await image.decode();
  return tf.tidy(() => tf.browser.fromPixels(image).sum(2).mul(0.19).add(110).dataSync());
}

/** Draws a map (pixels, row by row) over a grey photograph, its strongest value in full colour, and a box if given. */
export function paint(canvas, grey, map, box) {
  const side = Math.sqrt(grey.length), small = new ImageData(side, side), under = blank(side, side);
  const most = map.reduce((high, value) => Math.max(high, Math.abs(value)), 1e-12);
  map.forEach((value, k) => {
    const cover = (0.85 * Math.abs(value)) / most, colour = value > 0 ? FOR : AGAINST;
    for (let c = 0; c < 3; c++) small.data[4 * k + c] = (1 - cover) * grey[k] + cover * colour[c];
    small.data[4 * k + 3] = 255;
  });
  under.getContext("2d").putImageData(small, 0, 0);
  const pen = canvas.getContext("2d"), zoom = canvas.width / side;
  pen.drawImage(under, 0, 0, canvas.width, canvas.height);
  if (!box) return;
  const [x1, y1, x2, y2] = box.map((value) => value * zoom);
  for (const [colour, width] of [["black", 7], ["#ffd84d", 4]]) {
    [pen.strokeStyle, pen.lineWidth, pen.fillStyle] = [colour, width, colour];
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    for (const x of [x1, x2]) for (const y of [y1, y2]) pen.fillRect(x - width - 3, y - width - 3, 2 * width + 6, 2 * width + 6);
  }
}

/** A box of two corners: in order, inside, with sides of at least LEAST, in whole pixels. */
export function fitted(x1, y1, x2, y2, side) {
  const low = (a, b) => between(Math.min(a, b), 0, side - LEAST);
  const high = (a, b) => between(Math.max(a, b), low(a, b) + LEAST, side);
  return [low(x1, x2), low(y1, y2), high(x1, x2), high(y1, y2)];
}

/** How much of the smaller box lies in the other one, from 0 to 1. */
export function overlap(a, b) {
  const area = ([x1, y1, x2, y2]) => Math.max(0, x2 - x1) * Math.max(0, y2 - y1);
  return area(a.map((value, k) => Math[k < 2 ? "max" : "min"](value, b[k]))) / Math.min(area(a), area(b));
}

const moved = ([x1, y1, x2, y2], dx, dy, side) => [x1, y1, x2, y2].map((value, k) =>
  value + (k % 2 ? between(dy, -y1, side - y2) : between(dx, -x1, side - x2)));

/** Mouse and finger drag a corner, the box, or a new box; keys move it. `changed` gets the box, and whether this is the end. */
export function watch(canvas, side, current, changed) {
  let drag = null, old, from, still; // `still`: the page does not scroll
  const place = (event) => [event.offsetX, event.offsetY].map((value) => (value * side) / canvas.clientWidth);
  canvas.onpointerdown = (event) => {
    [old, from] = [current(), event];
    const [x, y] = place(event), [x1, y1, x2, y2] = old, reach = (18 * side) / canvas.clientWidth;
    const near = [Math.abs(x - x1) < Math.abs(x - x2) ? x1 : x2, Math.abs(y - y1) < Math.abs(y - y2) ? y1 : y2];
    const corner = Math.hypot(x - near[0], y - near[1]) < reach;
    const inside = x > x1 && x < x2 && y > y1 && y < y2;
    still = corner || inside;
    drag = (u, v) => {
      if (corner) return fitted(x1 + x2 - near[0], y1 + y2 - near[1], u, v, side);
      if (inside) return moved(old, u - x, v - y, side);
      const drawn = fitted(x, y, u, v, side);
      return Math.min(drawn[2] - drawn[0], drawn[3] - drawn[1]) < DRAWN ? old : drawn;
    };
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => drag && changed(drag(...place(event)), false);
  canvas.onpointercancel = () => changed(old, false); // the page scrolls
  canvas.ontouchmove = ({ touches: [{ clientX, clientY }] }) => {
    still ||= Math.abs(clientY - from.clientY) < 2 * Math.abs(clientX - from.clientX);
    return !still; // a finger that goes up or down beside the box scrolls, unless this is false
  };
  canvas.onlostpointercapture = () => changed(current(), !(drag = null));
  canvas.onkeyup = ({ key }) => ARROWS[key] && changed(current(), true); // a key that is held moves it once, for Undo
  canvas.onkeydown = (event) => {
    const [dx, dy] = ARROWS[event.key] ?? [0, 0], old = current(), [x1, y1, x2, y2] = old;
    if (!dx && !dy) return;
    event.preventDefault();
    const wider = fitted(x1, y1, Math.max(x1 + LEAST, x2 + dx), Math.max(y1 + LEAST, y2 + dy), side);
    changed(event.shiftKey ? wider : moved(old, dx, dy, side), false);
  };
}
