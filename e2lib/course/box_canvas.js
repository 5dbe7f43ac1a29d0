// A photograph with one box: draw it with mouse or finger, move it with the arrow keys, resize it with shift and arrows.
// The box is (x1, y1, x2, y2) in pixels of the image, half-open, inside the image, and at least LEAST pixels wide and high.
const LEAST = 4;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const between = (value, low, high) => Math.max(low, Math.min(high, value));

/** Corners of one axis, in whole pixels: in order, inside, far enough apart. */
function span(a, b, length) {
  const low = between(Math.floor(Math.min(a, b)), 0, length - LEAST);
  return [low, between(Math.ceil(Math.max(a, b)), low + LEAST, length)];
}

function render({ model, el }) {
  const [width, height] = [model.get("width"), model.get("height")];
  const canvas = document.createElement("canvas");
  const text = document.createElement("div");
  const style = document.createElement("style");
  style.textContent = `.e2lib-box canvas { width: 100%; display: block; touch-action: none; cursor: crosshair; }
    .e2lib-box canvas:focus-visible, .e2lib-box canvas:focus { outline: 3px solid #0072b2; outline-offset: 2px; }
    .e2lib-box div { font: 12px sans-serif; margin-top: 6px; }`;
  el.classList.add("e2lib-box");
  el.append(style, canvas, text);
  const zoom = Math.max(1, Math.round(640 / width));
  [canvas.width, canvas.height] = [zoom * width, zoom * height];
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  text.setAttribute("aria-live", "polite");

  const photo = new Image();
  let box = model.get("box"), from = null, timer = null;

  function draw() {
    const context = canvas.getContext("2d");
    const [x1, y1, x2, y2] = box.map((value) => value * zoom);
    context.drawImage(photo, 0, 0, canvas.width, canvas.height);
    for (const [colour, line] of [["black", 3 * zoom / 2], ["yellow", zoom / 2 + 1]]) {
      [context.strokeStyle, context.lineWidth] = [colour, line];
      context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    }
    const where = `box: left ${box[0]}, top ${box[1]}, width ${box[2] - box[0]}, height ${box[3] - box[1]} pixels`;
    text.textContent = where;
    canvas.setAttribute("aria-label", `Photograph with a ${where}. Arrow keys move it, shift and arrow keys resize it.`);
  }

  function show(next) {
    box = next;
    draw();
  }

  function send() {
    clearTimeout(timer);
    if (box.some((value, i) => value !== model.get("box")[i])) {
      model.set("box", box);
      model.save_changes();
    }
  }

  function load() {
    const url = URL.createObjectURL(new Blob([model.get("photo")], { type: "image/png" }));
    photo.onload = () => {
      URL.revokeObjectURL(url);
      draw();
    };
    photo.src = url;
  }

  /** Where a pointer is, in pixels of the image. */
  function place(event) {
    const area = canvas.getBoundingClientRect();
    return [(event.clientX - area.left) / area.width * width, (event.clientY - area.top) / area.height * height];
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    from = place(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const to = place(event);
    if (Math.hypot(to[0] - from[0], to[1] - from[1]) < 2) return; // a click, no box
    const [x1, x2] = span(from[0], to[0], width), [y1, y2] = span(from[1], to[1], height);
    show([x1, y1, x2, y2]);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => {
      from = null;
      send();
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    event.stopPropagation(); // else the notebook goes to another cell
    const [x1, y1, x2, y2] = box, [dx, dy] = arrow;
    if (event.shiftKey) {
      show([x1, y1, between(x2 + dx, x1 + LEAST, width), between(y2 + dy, y1 + LEAST, height)]);
    } else {
      const x = between(dx, -x1, width - x2), y = between(dy, -y1, height - y2);
      show([x1 + x, y1 + y, x2 + x, y2 + y]);
    }
    clearTimeout(timer);
    timer = setTimeout(send, 250); // held down, a key makes many steps, and one answer
  });
  const moved = () => show(model.get("box"));
  model.on("change:photo", load);
  model.on("change:box", moved);
  load();
  return () => {
    clearTimeout(timer);
    model.off("change:photo", load);
    model.off("change:box", moved);
  };
}

export default { render };
