// Tooltip of the region under the pointer. Bokeh's own tooltip is rebuilt at every move of the mouse and after every
// image, and the browser then lays out the whole page: 60 to 80 of the 231 ms that a move took.
const box = document.createElement("div");
box.setAttribute("role", "tooltip");
box.style.cssText =
  "position:fixed;left:0;top:0;z-index:1000;max-width:260px;padding:6px 9px;box-sizing:border-box;contain:content;" +
  "visibility:hidden;pointer-events:none;background:#fff;border:1px solid #b9c0c8;border-radius:4px;color:#1b1f24;" +
  "font:13px/1.4 Helvetica,Arial,sans-serif;box-shadow:0 1px 4px rgba(27,31,36,.2)";
const lines = ["b", "div", "div", "div"].map((kind) => box.appendChild(document.createElement(kind)));
document.body.append(box);

const OFFSET = 14, MAX_WIDTH = 260; // pixels
let pressed = false; // while the map is dragged, the region under the pointer stays the same

function follow({ clientX, clientY }) {
  const flipped = clientX + OFFSET + MAX_WIDTH > window.innerWidth;
  const left = flipped ? `calc(${clientX - OFFSET}px - 100%)` : `${clientX + OFFSET}px`;
  box.style.transform = `translate(${left}, calc(${clientY}px - 50%))`;
}

function show(texts) {
  box.style.visibility = texts ? "visible" : "hidden";
  texts?.forEach((text, line) => {
    if (lines[line].textContent !== text) lines[line].textContent = text;
  });
}

document.addEventListener("pointermove", follow, { capture: true, passive: true });
document.addEventListener("pointerdown", () => { pressed = true; show(null); }, { capture: true, passive: true });
for (const end of ["pointerup", "pointercancel"])
  document.addEventListener(end, () => { pressed = false; }, { capture: true, passive: true });

export default ({ tooltips, regions }, { event_name, x, y }) => {
  const { image: [numbers], x: [west], y: [south], dw: [wide], dh: [tall] } = regions.data;
  const [rows, columns] = numbers.shape;
  const column = Math.floor(((x - west) / wide) * columns), row = Math.floor(((y - south) / tall) * rows);
  const inside = column >= 0 && column < columns && row >= 0 && row < rows;
  const region = inside ? numbers[row * columns + column] : -1;
  const { data } = tooltips;
  const placed = box.style.transform !== ""; // the first move loads this module, the second one places the box
  const texts = [data.region, data.rate, data.images, data.persons].map((column) => column[region]);
  show(event_name === "mouseleave" || pressed || region < 0 || !placed ? null : texts);
};
