"use strict";

// Heat maps: each canvas holds one dot per pair of layers, first layer at the bottom left, and report.css makes it large.
// Pointer and arrow keys choose a cell; the output below says its layers, its value and its interval.

// 256 colours from 0 to 1, as in the pictures. Undefined cells are grey.
const MAGMA =
  "00000300000400000601000701010901010b02020d02020f03031104031304041505041706051907051b08061d09071f" +
  "0a07220b08240c09260d0a280e0a2a0f0b2c100c2f110c31120d33140d35150e38160e3a170f3c180f3f1a10411b1044" +
  "1c10461e10491f114b20114d2211502311522511552611572811592a115c2b115e2d10602f1062301065321067341068" +
  "350f6a370f6c390f6e3b0f6f3c0f713e0f72400f73420f74430f75450f76470f774810784a10794b10794d117a4f117b" +
  "50127b52127c53137c55137d57147d58157e5a157e5b167e5d177e5e177f60187f61187f63197f651a80661a80681b80" +
  "691c806b1c806c1d806e1e816f1e81711f81731f817420817621817721817922817a22817c23817e24817f2481812581" +
  "8225818426818526818727818928818a28818c29808d29808f2a80912a80922b80942b80952c80972c7f992d7f9a2d7f" +
  "9c2e7f9e2e7e9f2f7ea12f7ea3307ea4307da6317da7317da9327cab337cac337bae347bb0347bb1357ab3357ab53679" +
  "b63679b83778b93778bb3877bd3977be3976c03a75c23a75c33b74c53c74c63c73c83d72ca3e72cb3e71cd3f70ce4070" +
  "d0416fd1426ed3426dd4436dd6446cd7456bd9466ada4769dc4869dd4968de4a67e04b66e14c66e24d65e44e64e55063" +
  "e65162e75262e85461ea5560eb5660ec585fed595fee5b5eee5d5def5e5df0605df1615cf2635cf3655cf3675bf4685b" +
  "f56a5bf56c5bf66e5bf6705bf7715bf7735cf8755cf8775cf9795cf97b5df97d5dfa7f5efa805efa825ffb8460fb8660" +
  "fb8861fb8a62fc8c63fc8e63fc9064fc9265fc9366fd9567fd9768fd9969fd9b6afd9d6bfd9f6cfda16efda26ffda470" +
  "fea671fea873feaa74feac75feae76feaf78feb179feb37bfeb57cfeb77dfeb97ffebb80febc82febe83fec085fec286" +
  "fec488fec689fec78bfec98dfecb8efdcd90fdcf92fdd193fdd295fdd497fdd698fdd89afdda9cfddc9dfddd9ffddfa1" +
  "fde1a3fce3a5fce5a6fce6a8fce8aafceaacfcecaefceeb0fcf0b1fcf1b3fcf3b5fcf5b7fbf7b9fbf9bbfbfabdfbfcbf";
const GREY = "bfbfbf";
const UNIT = 1000, UNDEFINED = -32768;

function numbers(base64) {
  const bytes = Uint8Array.from(atob(base64), sign => sign.charCodeAt(0));
  return Array.from(new Int16Array(bytes.buffer), whole => whole === UNDEFINED ? NaN : whole / UNIT);
}

function colour(value) {
  const step = Math.min(255, Math.max(0, Math.floor(256 * value)));
  const hex = Number.isNaN(value) ? GREY : MAGMA.slice(6 * step, 6 * step + 6);
  return [0, 2, 4].map(at => parseInt(hex.slice(at, at + 2), 16));
}

function paint(canvas, cka) {
  const {width, height} = canvas, picture = new ImageData(width, height);
  cka.forEach((value, cell) => {
    const row = height - 1 - Math.floor(cell / width);
    picture.data.set([...colour(value), 255], 4 * (row * width + cell % width));
  });
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function digits(value) {
  return Number.isNaN(value) ? "\u2013" : value.toFixed(3).replace("-", "\u2212");
}

function told(map, row, column) {
  const cell = row * map.columns.layer.length + column;
  const place = (side, at) => `${side.model[at]} ${side.layer[at]} (depth ${side.depth[at].toFixed(2)})`;
  const value = Number.isNaN(map.cka[cell])
    ? "CKA undefined: a layer is constant over the images"
    : `CKA ${digits(map.cka[cell])} [${digits(map.low[cell])}, ${digits(map.high[cell])}]`;
  return [value, `up: ${place(map.rows, row)}`, `right: ${place(map.columns, column)}`];
}

function live(figure) {
  const canvas = figure.querySelector("canvas"), cursor = figure.querySelector(".cursor");
  const output = figure.querySelector("output");
  const map = JSON.parse(figure.querySelector("script").textContent);
  for (const side of ["cka", "low", "high"]) map[side] = numbers(map[side]);
  const {width, height} = canvas;
  let row = 0, column = 0;
  paint(canvas, map.cka);

  function choose(toRow, toColumn) {
    row = Math.min(height - 1, Math.max(0, toRow));
    column = Math.min(width - 1, Math.max(0, toColumn));
    Object.assign(cursor.style, {
      display: "block",
      left: `${100 * column / width}%`, bottom: `${100 * row / height}%`,
      width: `${100 / width}%`, height: `${100 / height}%`,
    });
    output.replaceChildren(...told(map, row, column).map(line => {
      const span = document.createElement("span");
      span.textContent = line;
      return span;
    }));
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width, down = (event.clientY - box.top) / box.height;
    choose(height - 1 - Math.floor(down * height), Math.floor(across * width));
  }

  function step(event) {
    const far = event.shiftKey ? 10 : 1;
    const to = {
      ArrowUp: [row + far, column], ArrowDown: [row - far, column],
      ArrowRight: [row, column + far], ArrowLeft: [row, column - far],
      Home: [row, 0], End: [row, width - 1], PageUp: [height - 1, column], PageDown: [0, column],
    }[event.key];
    if (!to || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    choose(...to);
  }

  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("keydown", step);
  canvas.addEventListener("focus", () => choose(row, column));
}

document.documentElement.classList.add("live");
document.querySelectorAll("figure.map").forEach(live);
document.querySelectorAll("details.still").forEach(still => { still.open = false; });
