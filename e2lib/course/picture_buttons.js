// A picture with a button on each of its points; a click, Enter, or a mouse that rests on a button chooses it.
const REST = 300; // milliseconds

function render({ model, el }) {
  const area = document.createElement("div"), picture = document.createElement("img");
  const style = document.createElement("style");
  style.textContent = `.e2lib-points { position: relative; }
    .e2lib-points img { width: 100%; display: block; }
    .e2lib-points button { position: absolute; width: 24px; height: 24px; margin: -12px 0 0 -12px; padding: 0;
      border: none; border-radius: 50%; background: transparent; cursor: pointer; }
    .e2lib-points button:hover { background: rgba(0, 0, 0, 0.15); }
    .e2lib-points button:focus-visible { outline: 3px solid #0072b2; }
    .e2lib-points button[aria-pressed=true] { box-shadow: 0 0 0 3px black; }`;
  area.className = "e2lib-points";
  picture.alt = model.get("text");
  const url = URL.createObjectURL(new Blob([model.get("picture")], { type: "image/jpeg" }));
  picture.src = url;
  area.append(style, picture);
  el.append(area);

  let timer = null;
  function choose(number) {
    clearTimeout(timer);
    model.set("chosen", number);
    model.save_changes();
  }
  const buttons = model.get("points").map(({ x, y, label }, number) => {
    const button = document.createElement("button");
    button.title = label;
    button.setAttribute("aria-label", label);
    [button.style.left, button.style.top] = [`${100 * x}%`, `${100 * y}%`];
    button.addEventListener("click", () => choose(number));
    button.addEventListener("mouseenter", () => { timer = setTimeout(() => choose(number), REST); });
    button.addEventListener("mouseleave", () => clearTimeout(timer));
    area.append(button);
    return button;
  });
  const mark = () => buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === model.get("chosen")));
  model.on("change:chosen", mark);
  mark();
  return () => {
    clearTimeout(timer);
    URL.revokeObjectURL(url);
    model.off("change:chosen", mark);
  };
}

export default { render };
