// What is under the pointer, in a box that only moves. Bokeh's own is put into the page anew at every move of the mouse
// and after every picture, and the browser then lays out the whole page: 60 to 80 of the 231 ms that a move took.
const box = document.createElement("div");
box.setAttribute("role", "tooltip");
box.style.cssText =
  "position:fixed;left:0;top:0;z-index:1000;max-width:260px;padding:6px 9px;box-sizing:border-box;contain:content;" +
  "visibility:hidden;pointer-events:none;background:#fff;border:1px solid #b9c0c8;border-radius:4px;color:#1b1f24;" +
  "font:13px/1.4 Helvetica,Arial,sans-serif;box-shadow:0 1px 4px rgba(27,31,36,.2)";
const lines = ["b", "div", "div", "div"].map((kind) => box.appendChild(document.createElement(kind)));
document.body.append(box);

const BESIDE = 14, WIDEST = 260; // pixels, from the pointer and of the box
let pressed = false; // while the map is dragged, what is under the pointer stays the same

function follow({ clientX, clientY }) {
  const flipped = clientX + BESIDE + WIDEST > window.innerWidth;
  const left = flipped ? `calc(${clientX - BESIDE}px - 100%)` : `${clientX + BESIDE}px`;
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

export default ({ cards, places }, { event_name, x, y }) => {
  const { image: [numbers], x: [west], y: [south], dw: [wide], dh: [tall] } = places.data;
  const [rows, columns] = numbers.shape;
  const column = Math.floor(((x - west) / wide) * columns), row = Math.floor(((y - south) / tall) * rows);
  const within = column >= 0 && column < columns && row >= 0 && row < rows;
  const place = within ? numbers[row * columns + column] : -1;
  const { data } = cards;
  const placed = box.style.transform !== ""; // this is loaded at the first move, and told the pointer's place at the second
  const texts = [data.place, data.level, data.images, data.persons].map((column) => column[place]);
  show(event_name === "mouseleave" || pressed || place < 0 || !placed ? null : texts);
};
