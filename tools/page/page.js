"use strict";

/* Draw a digit: strokes to ink, ink to the network's input, the network, and the display.

   Ink is an array of FIELD x FIELD numbers from 0 (background) to 1. Strokes are lists of points
   [x, y, width], in pixels of ink. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const SIZE = 28; // pixels: the side of the network's input
const DIGIT_SIZE = 20; // pixels: the longer side of a digit of MNIST
const FIELD = 4 * SIZE; // pixels: the side of the drawing field
const PEN = 9; // width of a stroke with mouse or finger

// ------------------------------------------------------------------------- strokes to ink

/** Add a line from a to b, each [x, y, width], to the ink: round ends, soft edges of one pixel. */
function addLine(ink, a, b) {
  const reach = Math.max(a[2], b[2]) / 2 + 1;
  const [left, right] = [Math.min(a[0], b[0]) - reach, Math.max(a[0], b[0]) + reach];
  const [top, bottom] = [Math.min(a[1], b[1]) - reach, Math.max(a[1], b[1]) + reach];
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const squared = dx * dx + dy * dy;
  for (let y = Math.max(0, Math.floor(top)); y < Math.min(FIELD, bottom); y++) {
    for (let x = Math.max(0, Math.floor(left)); x < Math.min(FIELD, right); x++) {
      const [px, py] = [x + 0.5 - a[0], y + 0.5 - a[1]];
      const along = squared && Math.min(1, Math.max(0, (px * dx + py * dy) / squared));
      const radius = (a[2] + along * (b[2] - a[2])) / 2;
      const cover = radius + 0.5 - Math.hypot(px - along * dx, py - along * dy);
      const place = y * FIELD + x;
      if (cover > ink[place]) ink[place] = Math.min(1, cover);
    }
  }
}

/** The ink of strokes, each a list of points [x, y, width]. */
function inkOf(strokes) {
  const ink = new Float32Array(FIELD * FIELD);
  for (const stroke of strokes) {
    stroke.forEach((point, index) => addLine(ink, stroke[Math.max(0, index - 1)], point));
  }
  return ink;
}

// ------------------------------------------- ink to the network's input, as predict.py does it

/** The nearest integer; halves are rounded to even, as in Python. */
function round(value) {
  const below = Math.floor(value);
  if (value - below === 0.5) return below + Math.abs(below % 2);
  return Math.round(value);
}

/**
 * Ink without specks, and its bounding box; null without ink. Unlike predict.py it keeps what
 * touches the edge: a photograph may show a desk there, this field does not.
 */
function findDigit(ink) {
  const part = new Int32Array(ink.length); // the connected component of a pixel; 0: none
  const mass = [0];
  for (let start = 0; start < ink.length; start++) {
    if (part[start] || ink[start] <= 0.25) continue;
    const waiting = [start];
    part[start] = mass.push(0) - 1;
    while (waiting.length) {
      const place = waiting.pop();
      mass[part[start]] += ink[place];
      for (const next of around(place)) {
        if (!part[next] && ink[next] > 0.25) {
          part[next] = part[start];
          waiting.push(next);
        }
      }
    }
  }
  const least = 0.05 * Math.max(...mass);
  const kept = new Float32Array(ink.length);
  const box = {top: FIELD, left: FIELD, bottom: 0, right: 0};
  for (let place = 0; place < ink.length; place++) {
    if (!part[place] || mass[part[place]] <= least) continue;
    const [y, x] = [Math.floor(place / FIELD), place % FIELD];
    box.top = Math.min(box.top, y);
    box.left = Math.min(box.left, x);
    box.bottom = Math.max(box.bottom, y + 1);
    box.right = Math.max(box.right, x + 1);
    for (const next of around(place)) kept[next] = ink[next]; // with its soft edges
  }
  return box.bottom ? {ink: kept, box} : null;
}

/** A pixel of the field and its neighbours. */
function around(place) {
  const [y, x, places] = [Math.floor(place / FIELD), place % FIELD, []];
  for (let row = Math.max(0, y - 1); row <= Math.min(FIELD - 1, y + 1); row++) {
    for (let column = Math.max(0, x - 1); column <= Math.min(FIELD - 1, x + 1); column++) {
      places.push(row * FIELD + column);
    }
  }
  return places;
}

/** For each of `to` pixels, the first of `from` that it averages, and weights: Pillow's HAMMING. */
function hamming(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({length: to}, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const weight = (x) => {
      if (x === 0) return 1;
      if (x >= 1) return 0;
      return (Math.sin(Math.PI * x) / (Math.PI * x)) * (0.54 + 0.46 * Math.cos(Math.PI * x));
    };
    const parts = [];
    for (let place = first; place < end; place++) {
      parts.push(weight(Math.abs((place - centre + 0.5) / support)));
    }
    const sum = parts.reduce((a, b) => a + b);
    return {first, parts: parts.map((part) => part / sum)};
  });
}

/** The ink in `box`, scaled to 20 x 20 and centred by mass in 28 x 28 pixels from 0 to 255. */
function fitAndCentre(ink, box) {
  const [high, wide] = [box.bottom - box.top, box.right - box.left];
  const fit = (side) => Math.max(1, round((side * DIGIT_SIZE) / Math.max(high, wide)));
  const [height, width] = [fit(high), fit(wide)];
  const mix = ({first, parts}, at) => {
    let sum = 0;
    parts.forEach((part, index) => (sum += part * at(first + index)));
    return sum;
  };
  const across = hamming(wide, width).map((pixel) =>
    Float32Array.from({length: high}, (_, y) =>
      mix(pixel, (x) => ink[(box.top + y) * FIELD + box.left + x])));
  const down = hamming(high, height);
  const digit = Float32Array.from({length: height * width}, (_, place) =>
    mix(down[Math.floor(place / width)], (y) => across[place % width][y]));
  const most = digit.reduce((a, b) => Math.max(a, b));
  let [mass, massX, massY] = [0, 0, 0];
  digit.forEach((value, place) => {
    digit[place] = value = Math.min(1, Math.max(0, value / most));
    mass += value;
    massX += value * (place % width);
    massY += value * Math.floor(place / width);
  });
  const start = (side, centre) => Math.min(Math.max(round(SIZE / 2 - centre), 0), SIZE - side);
  const [top, left] = [start(height, massY / mass), start(width, massX / mass)];
  const image = new Uint8Array(SIZE * SIZE);
  digit.forEach((value, place) => {
    const [y, x] = [top + Math.floor(place / width), left + (place % width)];
    image[y * SIZE + x] = round(255 * value);
  });
  return image;
}

/** The network's input: 28 x 28 pixels from 0 to 255, or null without ink. */
function toMnist(ink) {
  const found = findDigit(ink);
  return found && fitAndCentre(found.ink, found.box);
}

// ---------------------------------------------------------------------------- the network
// Tensors are {shape, values}, row-major. Operators are ONNX's, opset 17, as far as
// tools/page/build.py lets nodes through: (node with its attributes, ...inputs) to the output.

/** Typed numbers from base64. */
function decoded(text, Numbers) {
  return new Numbers(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

const product = (sizes) => sizes.reduce((a, b) => a * b, 1);

function newTensor(shape, filling = 0) {
  return {shape, values: new Float32Array(product(shape)).fill(filling)};
}

/** How far apart neighbours along each axis are in memory. */
function stridesOf(shape) {
  return shape.map((_, axis) => product(shape.slice(axis + 1)));
}

/** A tensor of `shape`: its value at an index is that at start + the sum of index * strides. */
function gather(values, shape, strides, start = 0) {
  const result = newTensor(shape);
  const index = shape.map(() => 0);
  const last = shape.length - 1;
  for (let at = 0, from = start; at < result.values.length;) {
    for (let column = 0; column < shape[last]; column++) {
      result.values[at++] = values[from + column * strides[last]];
    }
    for (let axis = last - 1; axis >= 0; axis--) {
      from += strides[axis];
      if (++index[axis] < shape[axis]) break;
      from -= strides[axis] * shape[axis];
      index[axis] = 0;
    }
  }
  return result;
}

function transpose({perm}, {shape, values}) {
  if (perm.every((from, to) => from === to)) return {shape, values};
  const strides = stridesOf(shape);
  return gather(values, perm.map((axis) => shape[axis]), perm.map((axis) => strides[axis]));
}

/** The operator that computes f(value, node) of each value. */
function unary(f) {
  return (node, {shape, values}) => ({shape, values: values.map((value) => f(value, node))});
}

/** The operator that computes f(a, b) of two tensors, broadcast as in NumPy, or of several. */
function binary(f) {
  return (node, ...inputs) => inputs.reduce((a, b) => {
    const rank = Math.max(a.shape.length, b.shape.length);
    const [own, other] = [a, b].map(({shape}) => [...Array(rank - shape.length).fill(1), ...shape]);
    const shape = own.map((size, axis) => Math.max(size, other[axis]));
    const [{values: ones}, {values: others}] = [[a, own], [b, other]].map(([tensor, sizes]) => {
      if (sizes.join() === shape.join()) return tensor;
      const strides = stridesOf(sizes).map((stride, axis) => (sizes[axis] > 1 ? stride : 0));
      return gather(tensor.values, shape, strides);
    });
    const result = newTensor(shape);
    for (let at = 0; at < ones.length; at++) result.values[at] = f(ones[at], others[at]);
    return result;
  });
}

/** The operator that folds along axes, which are an attribute or an input. */
function reduction(initial, step) {
  return (node, input, given) => {
    const {shape} = input;
    const all = [...shape.keys()];
    const axes = Array.from(given?.values ?? node.axes ?? all, (axis) => all.at(axis));
    const kept = all.filter((axis) => !axes.includes(axis));
    const {values} = transpose({perm: [...axes, ...kept]}, input);
    const result = newTensor(node.keepdims === 0 ? kept.map((axis) => shape[axis])
      : shape.map((length, axis) => (axes.includes(axis) ? 1 : length)), initial);
    const folded = result.values;
    for (let start = 0; start < values.length; start += folded.length) {
      for (let at = 0; at < folded.length; at++) folded[at] = step(folded[at], values[start + at]);
    }
    return result;
  };
}

/** Pads are what to add before each axis, then after each. */
function pad({mode}, input, {values: pads}, filling) {
  return input.shape.reduce((tensor, size, axis) => {
    const [before, after] = [pads[axis], pads[axis + input.shape.length]];
    if (!before && !after) return tensor;
    const {shape, values} = tensor;
    const [longer, inner] = [before + size + after, product(shape.slice(axis + 1))];
    const sizes = shape.map((length, each) => (each === axis ? longer : length));
    const result = newTensor(sizes, filling?.values[0]);
    for (let row = 0; row < result.values.length / inner; row++) {
      const place = (row % longer) - before;
      const nearest = Math.min(size - 1, Math.max(0, place));
      if (mode !== "edge" && nearest !== place) continue;
      const from = (Math.floor(row / longer) * size + nearest) * inner;
      result.values.set(values.subarray(from, from + inner), row * inner);
    }
    return result;
  }, input);
}

function convolve(node, input, {shape: [channels, read, high, wide], values: filters}, bias) {
  const {strides: [down, right], dilations: [tall, broad], group, pads} = node;
  const borders = {values: [0, 0, pads[0], pads[1], 0, 0, pads[2], pads[3]]};
  const {shape: [count, deep, height, width], values} = pad({}, input, borders);
  const rows = Math.floor((height - tall * (high - 1) - 1) / down) + 1;
  const columns = Math.floor((width - broad * (wide - 1) - 1) / right) + 1;
  const result = newTensor([count, channels, rows, columns]);
  const sums = result.values;
  // Where rows lie one behind the other, as for 1 x 1 filters, all of them are one.
  const whole = columns === width && down === 1 && right === 1;
  const [runs, length] = whole ? [1, rows * columns] : [rows, columns];
  for (let map = 0; map < count * channels; map++) {
    const [start, channel] = [map * rows * columns, map % channels];
    if (bias) sums.fill(bias.values[channel], start, start + rows * columns);
    const [image, part] = [Math.floor(map / channels), Math.floor((channel * group) / channels)];
    for (let tap = 0; tap < read * high * wide; tap++) {
      const source = image * deep + part * read + Math.floor(tap / (high * wide));
      const [y, x] = [tall * (Math.floor(tap / wide) % high), broad * (tap % wide)];
      const weight = filters[channel * read * high * wide + tap];
      for (let row = 0, to = start; row < runs; row++) {
        let from = (source * height + y + row * down) * width + x;
        for (let column = 0; column < length; column++) {
          sums[to++] += weight * values[from];
          from += right;
        }
      }
    }
  }
  return result;
}

/** The operator that folds each window; with ceil_mode, windows may reach beyond the padding. */
function pooling(initial, step) {
  return ({kernel_shape: kernel, strides, pads, ceil_mode: ceil}, input) => {
    const [images, channels, ...sides] = input.shape;
    const counts = sides.map((side, axis) => {
      const steps = (side + pads[axis] + pads[axis + 2] - kernel[axis]) / strides[axis];
      const last = ceil ? Math.ceil(steps) : Math.floor(steps);
      return last * strides[axis] < side + pads[axis] ? last + 1 : last; // each starts inside
    });
    const after = sides.map((side, axis) =>
      (counts[axis] - 1) * strides[axis] + kernel[axis] - side - pads[axis]);
    const borders = {values: [0, 0, pads[0], pads[1], 0, 0, ...after]};
    const {shape, values} = pad({}, input, borders, {values: [initial]});
    const [image, map, row, column] = stridesOf(shape);
    const windows = gather(values, [...kernel, images, channels, ...counts],
      [row, column, image, map, row * strides[0], column * strides[1]]);
    return reduction(initial, step)({axes: [0, 1], keepdims: 0}, windows);
  };
}

/** Bilinear interpolation at the places (x, y) of a grid, from -1 to 1; zero outside. */
function gridSample(node, {shape: [count, channels, height, width], values}, grid) {
  const [rows, columns] = grid.shape.slice(1);
  const result = newTensor([count, channels, rows, columns]);
  for (let to = 0; to < result.values.length; to++) {
    const map = Math.floor(to / (rows * columns)); // of an image and a channel
    const place = 2 * (Math.floor(map / channels) * rows * columns + (to % (rows * columns)));
    const x = ((grid.values[place] + 1) * width - 1) / 2;
    const y = ((grid.values[place + 1] + 1) * height - 1) / 2;
    for (const row of [Math.floor(y), Math.floor(y) + 1]) {
      for (const column of [Math.floor(x), Math.floor(x) + 1]) {
        if (row < 0 || column < 0 || row >= height || column >= width) continue;
        const weight = (1 - Math.abs(y - row)) * (1 - Math.abs(x - column));
        result.values[to] += weight * values[(map * height + row) * width + column];
      }
    }
  }
  return result;
}

/** Gemm, and MatMul by a matrix. */
function multiply({transB}, input, matrix, bias) {
  const {shape: [depth, width], values} = transB ? transpose({perm: [1, 0]}, matrix) : matrix;
  const result = newTensor([...input.shape.slice(0, -1), width]);
  for (let at = 0; at < result.values.length; at++) {
    const [row, column] = [Math.floor(at / width), at % width];
    let sum = 0;
    for (let k = 0; k < depth; k++) {
      sum += input.values[row * depth + k] * values[k * width + column];
    }
    result.values[at] = sum;
  }
  return bias ? OPERATORS.Add({}, result, bias) : result;
}

/** Steps are positive. */
function slice(node, {shape, values}, starts, ends, axes, steps) {
  const [sizes, strides, all] = [[...shape], stridesOf(shape), [...shape.keys()]];
  let start = 0;
  starts.values.forEach((first, at) => {
    const [axis, step] = [all.at(axes?.values[at] ?? at), steps?.values[at] ?? 1];
    const [from, to] = [first, ends.values[at]].map((place) =>
      Math.min(shape[axis], Math.max(0, place < 0 ? place + shape[axis] : place)));
    start += from * strides[axis];
    sizes[axis] = Math.ceil((to - from) / step);
    strides[axis] *= step;
  });
  return gather(values, sizes, strides, start);
}

function concatenate({axis}, ...inputs) {
  const {shape} = inputs[0];
  const blocks = product(shape.slice(0, axis));
  const length = inputs.reduce((sum, input) => sum + input.shape[axis], 0);
  const result = newTensor(shape.map((size, each) => (each === axis ? length : size)));
  let to = 0;
  for (let block = 0; block < blocks; block++) {
    for (const {values} of inputs) {
      const size = values.length / blocks;
      result.values.set(values.subarray(block * size, (block + 1) * size), to);
      to += size;
    }
  }
  return result;
}

const sumPool = pooling(0, (a, b) => a + b);

const OPERATORS = {
  Add: binary((a, b) => a + b),
  Sub: binary((a, b) => a - b),
  Mul: binary((a, b) => a * b),
  Div: binary((a, b) => a / b),
  Pow: binary(Math.pow),
  Max: binary(Math.max),
  Min: binary(Math.min),
  Clip: (node, input, least, most) => unary((value) => Math.min(most?.values[0] ?? Infinity,
    Math.max(least?.values[0] ?? -Infinity, value)))(node, input),
  Relu: unary((value) => (value > 0 ? value : 0)),
  LeakyRelu: unary((value, {alpha}) => (value > 0 ? value : alpha * value)),
  Sigmoid: unary((value) => 1 / (1 + Math.exp(-value))),
  Tanh: unary(Math.tanh),
  Exp: unary(Math.exp),
  ReduceSum: reduction(0, (a, b) => a + b),
  ReduceMean(node, input) {
    const sums = OPERATORS.ReduceSum(node, input);
    const count = input.values.length / sums.values.length;
    return unary((sum) => sum / count)(node, sums);
  },
  ReduceMax: reduction(-Infinity, Math.max),
  ReduceMin: reduction(Infinity, Math.min),
  GlobalAveragePool: (node, input) => OPERATORS.ReduceMean({axes: [2, 3]}, input),
  LogSoftmax({axis}, input) {
    const axes = {axes: [axis]};
    const shifted = OPERATORS.Sub({}, input, OPERATORS.ReduceMax(axes, input));
    const sums = OPERATORS.ReduceSum(axes, OPERATORS.Exp({}, shifted));
    return OPERATORS.Sub({}, shifted, unary(Math.log)({}, sums));
  },
  BatchNormalization({epsilon}, {shape, values}, scale, bias, mean, variance) { // not after a Conv
    const inner = product(shape.slice(2));
    return {shape, values: values.map((value, at) => {
      const channel = Math.floor(at / inner) % shape[1];
      const factor = scale.values[channel] / Math.sqrt(variance.values[channel] + epsilon);
      return (value - mean.values[channel]) * factor + bias.values[channel];
    })};
  },
  Conv: convolve,
  MaxPool: pooling(-Infinity, Math.max),
  AveragePool(node, input) { // the mean of what is inside
    const inside = newTensor([1, 1, ...input.shape.slice(2)], 1);
    return OPERATORS.Div({}, sumPool(node, input), sumPool(node, inside));
  },
  GridSample: gridSample,
  Gemm: multiply,
  MatMul: multiply,
  Pad: pad,
  Slice: slice,
  Concat: concatenate,
  Transpose: transpose,
  Reshape: ({shape}, {values}) => ({shape, values}),
};

/** A network with the values of its constants decoded. */
function unpacked(network) {
  return {...network, constants: network.constants.map(({shape, values}) => (
    {shape, values: typeof values === "string" ? decoded(values, Float32Array) : values}))};
}

/** The ten probabilities of an image, 28 x 28 from 0 to 255. `watch` sees (node, output). */
function probabilities(network, image, watch) {
  const pixels = Float32Array.from(image, (value) => value / 255);
  const tensors = [{shape: [1, 1, SIZE, SIZE], values: pixels}, ...network.constants];
  for (const node of network.nodes) {
    const inputs = node.inputs.map((place) => tensors[place]);
    tensors.push(OPERATORS[node.op](node, ...inputs));
    watch?.(node, tensors.at(-1));
  }
  const logs = OPERATORS.LogSoftmax({axis: 1}, tensors[network.logits]);
  return Array.from(logs.values, Math.exp);
}

// --------------------------------------------------------------------- the state of the page

const NETWORKS = DATA.networks.map(unpacked);
const SAMPLES = DATA.samples.map(
  ({digit, pixels}) => ({digit, image: decoded(pixels, Uint8Array)}));

const find = (id) => document.getElementById(id);
let network = NETWORKS.find((entry) => entry.name === DATA.model) ?? NETWORKS.at(-1);
// Strokes (lists of points), samples ({digit, image}) and nulls (clearings), in order, for undo.
const past = [];

/** What is drawn: {image} of the last sample, or the {strokes} since it. */
function picture() {
  const start = past.findLastIndex((entry) => !Array.isArray(entry));
  if (start >= 0 && past[start] && start === past.length - 1) return {image: past[start].image};
  return {strokes: past.slice(start + 1)};
}

// ---------------------------------------------------------------------------- the display

const SHOWN_LAYERS = 3;
const SHOWN_MAPS = 8;
let colours; // 256 of them, from 0 to the maximum, as RGBA in memory
let requested = false;
let speaking;

/** Read the colours of feature maps from the style: they differ in dark mode. */
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const stops = [0, 1, 2].map((number) =>
    style.getPropertyValue(`--map${number}`).match(/[0-9a-f]{2}/gi).map((x) => parseInt(x, 16)));
  const bytes = new Uint8ClampedArray(4 * 256).fill(255); // red, green, blue, opacity
  for (let level = 0; level < 256; level++) {
    const [from, to] = level < 128 ? [stops[0], stops[1]] : [stops[1], stops[2]];
    const share = level < 128 ? level / 128 : (level - 128) / 127;
    bytes.set(from.map((value, index) => value + share * (to[index] - value)), 4 * level);
  }
  colours = new Uint32Array(bytes.buffer);
}

/** Paint values from 0 to `most`, row by row, one per pixel. */
function paint(canvas, values, most) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const painted = new Uint32Array(pixels.data.buffer).fill(colours[0]);
  for (let at = 0; at < values.length; at++) {
    painted[at] = colours[Math.round(255 * Math.min(1, values[at] / most))];
  }
  context.putImageData(pixels, 0, 0);
}

/** Paint strokes or a sample on the drawing field. */
function drawPad({strokes, image}) {
  const pad = find("pad");
  const context = pad.getContext("2d");
  const side = Math.round(pad.clientWidth * (window.devicePixelRatio || 1));
  if (pad.width !== side) pad.width = pad.height = side;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, side, side);
  context.imageSmoothingEnabled = false;
  if (image) context.drawImage(find("seen"), 0, 0, side, side);
  context.strokeStyle = getComputedStyle(pad).color;
  context.lineCap = context.lineJoin = "round";
  context.scale(side / FIELD, side / FIELD);
  for (const stroke of strokes ?? []) {
    const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    stroke.forEach((point, index) => { // curves from middle to middle are smooth
      const [before, after] = [stroke[index - 1] ?? point, stroke[index + 1] ?? point];
      context.lineWidth = point[2];
      context.beginPath();
      context.moveTo(...middle(before, point));
      const [x, y] = middle(point, after);
      if (before === point || after === point) context.lineTo(x, y + 0.01); // or no dots
      else context.quadraticCurveTo(point[0], point[1], x, y);
      context.stroke();
    });
  }
}

/** Room for the same number of maps of each layer, so that no network moves the layout. */
function addMaps() {
  find("maps").append(...Array.from({length: SHOWN_LAYERS}, () => {
    const figure = document.createElement("figure");
    const tiles = document.createElement("div");
    tiles.setAttribute("aria-hidden", "true");
    tiles.append(...Array.from({length: SHOWN_MAPS}, () => document.createElement("canvas")));
    figure.append(document.createElement("figcaption"), tiles);
    return figure;
  }));
}

/** Show maps (1, channels, height, width) in a figure; without maps, it is empty. */
function showMaps({children: [caption, tiles]}, maps, drawn) {
  const [, channels, height, width] = maps?.shape ?? [0, 0, 0, 0];
  const count = Math.min(channels, SHOWN_MAPS);
  const of = count < channels ? `${count} of ${channels}` : channels;
  caption.textContent = maps ? `${of} maps, ${height} × ${width}` : "";
  const area = height * width;
  const most = maps?.values.reduce((a, b) => Math.max(a, b), 0.1);
  [...tiles.children].forEach((canvas, map) => {
    canvas.hidden = map >= count;
    if (canvas.hidden) return;
    [canvas.width, canvas.height] = [width, height];
    paint(canvas, drawn ? maps.values.subarray(map * area, (map + 1) * area) : [], most);
  });
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Predict what is drawn, and show everything. */
function update() {
  requested = false;
  const drawn = picture();
  const image = drawn.image ?? toMnist(inkOf(drawn.strokes));
  const layers = [];
  const shares = probabilities(network, image ?? new Uint8Array(SIZE * SIZE), ({op}, output) => {
    if (op === "Relu" && output.shape.length === 4) layers.push(output);
  });
  const best = shares.indexOf(Math.max(...shares));
  const unsure = image !== null && shares[best] < DATA.sure;
  paint(find("seen"), image ?? [], 255);
  drawPad(drawn);
  [...find("maps").children].forEach((figure, at) => showMaps(figure, layers[at], image));
  find("digit").textContent = image ? best : "";
  find("says").classList.toggle("unsure", unsure);
  find("hint").hidden = Boolean(image) || drawn.strokes.length > 0;
  [...find("bars").children].forEach((row, index) => {
    const share = image ? shares[index] : 0;
    row.classList.toggle("best", image !== null && index === best);
    row.style.setProperty("--share", share);
    const [exact, rounded] = row.lastElementChild.children;
    exact.textContent = image ? percent(share) : "";
    rounded.textContent = image ? Math.round(100 * share) : "";
  });
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const words = `${example ? "Example" : "Prediction"}: ${best}, ${percent(shares[best])}`;
    const said = image ? words + (unsure ? ", unsure" : "") : "Nothing drawn";
    if (find("spoken").textContent !== said) find("spoken").textContent = said;
  }, 700);
}

/** Update before the next frame: strokes move more often than screens change. */
function requestUpdate() {
  if (!requested) requestAnimationFrame(update);
  requested = true;
}

function showFacts() {
  find("parameters").textContent = network.parameters.toLocaleString("en");
  find("size").textContent = `${Math.round(network.parameters / 250)} kB`;
  find("accuracy").textContent = `${network.accuracy} %`;
}

// ------------------------------------------------------------------------------- the input

function undo() {
  removeExample();
  past.pop();
  requestUpdate();
}

function clearAll() {
  removeExample();
  if (past.length && past.at(-1) !== null) past.push(null);
  requestUpdate();
}

/** Strokes by mouse, finger or pen; only a pen reports a pressure. */
function listenToPad() {
  const pad = find("pad");
  let [pointer, stroke] = [null, null];
  const point = (event) => {
    const box = pad.getBoundingClientRect();
    const width = event.pointerType === "pen" && event.pressure ? 0.5 + event.pressure : 1;
    return [
      ((event.clientX - box.left) * FIELD) / box.width,
      ((event.clientY - box.top) * FIELD) / box.height,
      PEN * width,
    ];
  };
  pad.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;
    removeExample();
    pointer = event.pointerId;
    pad.setPointerCapture(pointer);
    stroke = [point(event)];
    past.push(stroke);
    requestUpdate();
  });
  pad.addEventListener("pointermove", (event) => {
    if (event.pointerId === pointer && !(event.buttons & 1)) pointer = null; // released elsewhere
    if (event.pointerId !== pointer || past.at(-1) !== stroke) return; // undone meanwhile
    const events = event.getCoalescedEvents?.() ?? [];
    for (const next of (events.length ? events : [event]).map(point)) {
      const last = stroke.at(-1); // a mouse sends more points than are needed
      if (Math.hypot(...next.map((value, axis) => value - last[axis])) >= 0.4) stroke.push(next);
    }
    requestUpdate();
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    pad.addEventListener(end, (event) => {
      if (event.pointerId === pointer) pointer = null;
    });
  }
}

function addSamples() {
  find("samples").append(...SAMPLES.map((sample) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Sample ${sample.digit}`);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIZE;
    button.append(canvas);
    button.addEventListener("click", () => {
      removeExample();
      past.push(sample);
      requestUpdate();
    });
    return button;
  }));
}

function addNetworks() {
  find("networks").append(...NETWORKS.map((entry) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    [input.type, input.name, input.checked] = ["radio", "network", entry === network];
    input.addEventListener("change", () => {
      network = entry;
      showFacts();
      requestUpdate();
    });
    const text = document.createElement("span");
    text.textContent = entry.name.replace(/^model_?/, "");
    input.setAttribute("aria-label", entry.name);
    label.append(input, text);
    return label;
  }));
}

function addBars() {
  for (let digit = 0; digit < 10; digit++) {
    const row = document.createElement("li");
    row.innerHTML = `<b>${digit}</b><i aria-hidden="true"></i>`
      + '<span><span></span><small aria-hidden="true"></small></span>';
    find("bars").append(row);
  }
}

/** Repaint everything in the colours of the style. */
function repaint() {
  readColours();
  SAMPLES.forEach(({image}, index) => {
    paint(find("samples").children[index].firstChild, image, 255);
  });
  requestUpdate();
}

// What is drawn when the page opens, until somebody draws.
const EXAMPLE = [[33, 34], [43, 24], [59, 21], [72, 29], [72, 42], [61, 52], [49, 54], [63, 56],
  [77, 66], [77, 81], [65, 92], [48, 93], [33, 84]].map((place) => [...place, PEN]);
let example = true;

function removeExample() {
  if (example) past.length = 0;
  example = false;
}

addBars();
addMaps();
addNetworks();
addSamples();
listenToPad();
showFacts();
find("undo").addEventListener("click", undo);
find("clear").addEventListener("click", clearAll);
document.addEventListener("keydown", (event) => {
  const held = (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey;
  const undoing = held && event.key.toLowerCase() === "z"; // "Z" while Caps Lock is on
  if (!undoing && event.key !== "Escape") return;
  event.preventDefault();
  (undoing ? undo : clearAll)();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
new ResizeObserver(requestUpdate).observe(find("pad"));
addEventListener("resize", requestUpdate); // zooming may change the pixel density only
past.push(EXAMPLE);
repaint();
