"use strict";

/* Draw a digit: strokes to ink, ink to what the network sees, the network, and what is shown.

   Maps are {channels, height, width, values}, channel by channel and row by row. Ink is an array
   of FIELD x FIELD numbers from 0 (paper) to 1. Strokes are in the same units as ink. */

const DATA = JSON.parse(document.getElementById("data").textContent);
const SIZE = 28; // pixels: what a network sees
const DIGIT_SIZE = 20; // pixels: the longer side of a digit of MNIST
const FIELD = 4 * SIZE; // the drawing field, and the size at which predict.py looks at pictures
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


// --------------------------------------------- ink to what the network sees, as predict.py

/** The nearest whole number; of two as near, the even one, as Python has it. */
function round(value) {
  const below = Math.floor(value);
  if (value - below === 0.5) return below + Math.abs(below % 2);
  return Math.round(value);
}

/**
 * Ink without specks, and the box around the rest; null where there is no ink. Unlike predict.py
 * it keeps what touches the edge: a photograph may show a desk there, this field does not.
 */
function findDigit(ink) {
  const part = new Int32Array(ink.length); // to which connected part a pixel belongs; 0: none
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

/** A pixel of the field and its neighbours, up to eight. */
function around(place) {
  const [y, x, places] = [Math.floor(place / FIELD), place % FIELD, []];
  for (let row = Math.max(0, y - 1); row <= Math.min(FIELD - 1, y + 1); row++) {
    for (let column = Math.max(0, x - 1); column <= Math.min(FIELD - 1, x + 1); column++) {
      places.push(row * FIELD + column);
    }
  }
  return places;
}

/** For each of `to` pixels, which of `from` it is made of, and in which parts: Pillow's HAMMING. */
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

/** The ink in `box`, fitted into 20 x 20, centred by its mass in 28 x 28 pixels from 0 to 255. */
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

/** What a network sees of the ink: 28 x 28 pixels from 0 to 255, or null where there is none. */
function toMnist(ink) {
  const found = findDigit(ink);
  return found && fitAndCentre(found.ink, found.box);
}


// ---------------------------------------------------------------------------- the network

/** The numbers that base64 stands for. */
function decoded(text, Numbers) {
  return new Numbers(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

/** Layers as they are run, with their weights in place. */
function unpacked(layers) {
  return layers.map((layer) => {
    // Numbers that are used again are told by the place of the layer that has them.
    const numbers = (name, Kind = Float32Array) =>
      decoded(layers[layer[name]]?.[name] ?? layer[name], Kind);
    if (layer.kind === "constant") return {...layer, values: numbers("values")};
    if (layer.kind !== "convolution") return layer;
    const [steps, scales] = [numbers("filters", Int16Array), numbers("scales")];
    const size = steps.length / layer.channels;
    const filters = Float32Array.from(steps, (step, at) => step * scales[Math.floor(at / size)]);
    return {...layer, filters, bias: numbers("bias")};
  });
}

function newMaps(channels, height, width) {
  return {channels, height, width, values: new Float32Array(channels * height * width)};
}

/** Maps with a border of zeros. */
function padded(maps, border) {
  if (!border) return maps;
  const {channels, height, width, values} = maps;
  const result = newMaps(channels, height + 2 * border, width + 2 * border);
  for (let row = 0; row < channels * height; row++) {
    const line = row + border * (2 * Math.floor(row / height) + 1);
    const from = row * width;
    result.values.set(values.subarray(from, from + width), line * result.width + border);
  }
  return result;
}

function convolve(layer, input) {
  const {channels, size, stride, groups, filters, bias} = layer;
  const {channels: deep, height, width, values} = padded(input, layer.padding);
  const result = newMaps(
    channels, Math.floor((height - size) / stride) + 1, Math.floor((width - size) / stride) + 1);
  const {height: rows, width: columns, values: sums} = result;
  const [read, area, taps] = [deep / groups, rows * columns, size * size];
  for (let channel = 0; channel < channels; channel++) {
    const first = Math.floor((channel * groups) / channels) * read;
    sums.fill(bias[channel], channel * area, (channel + 1) * area);
    for (let map = 0; map < read; map++) {
      const from = (first + map) * height * width;
      const filter = filters.subarray((channel * read + map) * taps);
      const run = (stride === 1 && {1: addOneByOne, 3: addThreeByThree}[size]) || addAny;
      run(filter, values, from, width, sums, channel * area, rows, columns, size, stride);
    }
  }
  return result;
}

/** Add to the sums at `to` what a filter makes of the map at `from`. */
function addAny(filter, values, from, width, sums, to, rows, columns, size, stride) {
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      let sum = 0;
      for (let y = 0; y < size; y++) {
        const place = from + (row * stride + y) * width + column * stride;
        for (let x = 0; x < size; x++) sum += filter[y * size + x] * values[place + x];
      }
      sums[to++] += sum;
    }
  }
}

/** The same for 1 x 1 filters: with those of 3 x 3, they have nearly all of the work. */
function addOneByOne(filter, values, from, width, sums, to, rows, columns) {
  const weight = filter[0];
  for (let place = 0; place < rows * columns; place++) {
    sums[to + place] += weight * values[from + place];
  }
}

/** The same for 3 x 3 filters. */
function addThreeByThree(filter, values, from, width, sums, to, rows, columns) {
  const [a, b, c, d, e, f, g, h, i] = filter;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const top = from + row * width + column;
      const middle = top + width;
      const bottom = middle + width;
      sums[to++] += a * values[top] + b * values[top + 1] + c * values[top + 2]
        + d * values[middle] + e * values[middle + 1] + f * values[middle + 2]
        + g * values[bottom] + h * values[bottom + 1] + i * values[bottom + 2];
    }
  }
}

/** The most, least, sum or mean of each window; without a size, of all of a map. */
function pool(layer, {channels, height, width, values}) {
  const size = layer.size ?? height;
  const stride = layer.stride ?? size;
  // A window that reaches beyond the edge counts with `ceil`, if it begins inside.
  const steps = (side) => {
    const count = (layer.ceil ? Math.ceil : Math.floor)((side - size) / stride) + 1;
    return layer.ceil && (count - 1) * stride >= side ? count - 1 : count;
  };
  const result = newMaps(channels, steps(height), layer.size ? steps(width) : 1);
  let at = 0;
  for (let channel = 0; channel < channels; channel++) {
    for (let row = 0; row < result.height; row++) {
      for (let column = 0; column < result.width; column++) {
        const [bottom, left] = [Math.min(row * stride + size, height), column * stride];
        const right = layer.size ? Math.min(left + size, width) : width;
        let [most, least, sum] = [-Infinity, Infinity, 0];
        for (let y = row * stride; y < bottom; y++) {
          for (let x = left; x < right; x++) {
            const value = values[(channel * height + y) * width + x];
            sum += value;
            if (value > most) most = value;
            if (value < least) least = value;
          }
        }
        const area = (bottom - row * stride) * (right - left);
        result.values[at++] = {max: most, min: least, sum, avg: sum / area}[layer.kind];
      }
    }
  }
  return result;
}

/** A layer that makes f(value, value) of two maps; along sides where one is 1 long, it repeats. */
function combine(f) {
  return (layer, one, other) => {
    const longer = (side) => Math.max(one[side], other[side]);
    const result = newMaps(longer("channels"), longer("height"), longer("width"));
    const placeIn = ({channels, height, width}, channel, y, x) =>
      (channels > 1 && channel * height * width) + (height > 1 && y * width) + (width > 1 && x);
    let at = 0;
    for (let channel = 0; channel < result.channels; channel++) {
      for (let y = 0; y < result.height; y++) {
        for (let x = 0; x < result.width; x++) {
          const [here, there] = [placeIn(one, channel, y, x), placeIn(other, channel, y, x)];
          result.values[at++] = f(one.values[here], other.values[there]);
        }
      }
    }
    return result;
  };
}

/** The value at (y, x), where `at` knows those at whole numbers: the nearer, the more it counts. */
function between(at, y, x) {
  const [top, left] = [Math.floor(y), Math.floor(x)];
  const [down, right] = [y - top, x - left];
  return (1 - down) * ((1 - right) * at(top, left) + right * at(top, left + 1))
    + down * ((1 - right) * at(top + 1, left) + right * at(top + 1, left + 1));
}

/** A map as it is at the places of a grid, maps of x and y from -1 to 1; it is 0 outside. */
function sample(layer, {height, width, values}, grid) {
  const at = (y, x) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : values[y * width + x]);
  const result = newMaps(1, grid.height, grid.width);
  const pixel = (place, side) => ((grid.values[place] + 1) * side - 1) / 2;
  result.values.forEach((_, place) => {
    const y = pixel(place + result.values.length, height);
    result.values[place] = between(at, y, pixel(place, width));
  });
  return result;
}

const RUN = {
  convolution: convolve,
  max: pool,
  min: pool,
  sum: pool,
  avg: pool,
  sample,
  add: combine((a, b) => a + b),
  sub: combine((a, b) => a - b),
  mul: combine((a, b) => a * b),
  div: combine((a, b) => a / b),
  maximum: combine(Math.max),
  pow: combine(Math.pow),
  clamp: combine(Math.max),
  expand: (layer, maps) =>
    RUN.add(layer, maps, newMaps(layer.channels, layer.height, layer.width)),
  constant: (layer) => layer,
  same: (layer, maps) => maps,
  relu: (layer, maps) => ({...maps, values: maps.values.map((value) => (value > 0 ? value : 0))}),
  flatten: (layer, {values}) => ({channels: values.length, height: 1, width: 1, values}),
  crop({channels, height, width, from}, maps) {
    const result = newMaps(channels, height, width);
    for (let row = 0; row < channels * height; row++) {
      const channel = from[0] + Math.floor(row / height);
      const start = (channel * maps.height + from[1] + (row % height)) * maps.width + from[2];
      result.values.set(maps.values.subarray(start, start + width), row * width);
    }
    return result;
  },
  join(layer, ...inputs) {
    const [{height, width}, channels] = [inputs[0], inputs.map((maps) => maps.channels)];
    const result = newMaps(channels.reduce((a, b) => a + b), height, width);
    let at = 0;
    for (const {values} of inputs) {
      result.values.set(values, at);
      at += values.length;
    }
    return result;
  },
};

/** Maps after all layers; each reads those `of` others. `watch`, if given, sees them after each. */
function runLayers(layers, input, watch) {
  const outputs = [input];
  for (const layer of layers) {
    const maps = RUN[layer.kind](layer, ...layer.of.map((place) => outputs[place]));
    outputs.push(maps);
    watch?.(layer, maps);
  }
  return outputs.at(-1);
}

/** The ten probabilities that a network gives an image, 28 x 28 from 0 to 255. */
function probabilities(network, image, watch) {
  const input = newMaps(1, SIZE, SIZE);
  image.forEach((value, at) => (input.values[at] = (value / 255 - DATA.mean) / DATA.deviation));
  const logits = runLayers(network.layers, input, watch).values;
  const most = Math.max(...logits);
  const parts = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = parts.reduce((a, b) => a + b);
  return parts.map((part) => part / sum);
}


// ------------------------------------------------------------------------ what is on paper

const NETWORKS = DATA.networks.map((entry) => ({...entry, layers: unpacked(entry.layers)}));
const SAMPLES = DATA.samples.map(
  ({digit, pixels}) => ({digit, image: decoded(pixels, Uint8Array)}));

const find = (id) => document.getElementById(id);
// The latest attempt that has the accuracy of the challenge.
let network = NETWORKS.findLast((entry) => entry.accuracy >= 99.4) ?? NETWORKS.at(-1);
// All that was done: strokes (lists of points), samples ({digit, image}), and null for a clearing.
const past = [];

/** What there is on the paper: {image} of a sample, or {strokes}, which take the place of one. */
function picture() {
  const start = past.findLastIndex((entry) => !Array.isArray(entry));
  if (start >= 0 && past[start] && start === past.length - 1) return {image: past[start].image};
  return {strokes: past.slice(start + 1)};
}


// ------------------------------------------------------------------------- what is shown

const SHOWN_LAYERS = 3;
let colours; // from paper to most, 256 of them, as canvases have them in memory
let asked = false;
let speaking;

/** Read the colours of maps from the style, which knows whether it is day. */
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const stops = [0, 1, 2].map((number) =>
    style.getPropertyValue(`--map${number}`).match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16)));
  const bytes = new Uint8ClampedArray(4 * 256).fill(255); // red, green, blue, opacity
  for (let level = 0; level < 256; level++) {
    const [from, to] = level < 128 ? [stops[0], stops[1]] : [stops[1], stops[2]];
    const share = level < 128 ? level / 128 : (level - 128) / 127;
    bytes.set(from.map((value, index) => value + share * (to[index] - value)), 4 * level);
  }
  colours = new Uint32Array(bytes.buffer);
}

/** Show values from 0 to `most`, row by row, on a canvas of that many pixels. */
function paint(canvas, values, most) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const painted = new Uint32Array(pixels.data.buffer).fill(colours[0]);
  for (let at = 0; at < values.length; at++) {
    painted[at] = colours[Math.round(255 * Math.min(1, values[at] / most))];
  }
  context.putImageData(pixels, 0, 0);
}

/** The strokes, or the sample, on the drawing field. */
function drawPad({strokes, image}) {
  const pad = find("pad");
  const context = pad.getContext("2d");
  const side = Math.round(pad.clientWidth * (window.devicePixelRatio || 1));
  if (pad.width !== side) pad.width = pad.height = side;
  const ink = getComputedStyle(pad).color;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, side, side);
  context.fillStyle = context.strokeStyle = ink;
  context.lineCap = context.lineJoin = "round";
  if (image) {
    context.drawImage(enlarged(image), 0, 0, side, side);
    context.globalCompositeOperation = "source-in";
    context.fillRect(0, 0, side, side);
    context.globalCompositeOperation = "source-over";
    return;
  }
  context.scale(side / FIELD, side / FIELD);
  for (const stroke of strokes) {
    const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    stroke.forEach((point, index) => { // a curve from middle to middle, as smooth as a hand
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

/** A canvas with a sample eight times as large, its edges sharp and smooth. */
function enlarged(image) {
  const times = 8;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = times * SIZE;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const at = (y, x) => (x < 0 || y < 0 || x >= SIZE || y >= SIZE ? 0 : image[y * SIZE + x] / 255);
  for (let place = 0; place < canvas.width * canvas.height; place++) {
    const y = (Math.floor(place / canvas.width) + 0.5) / times - 0.5;
    const x = ((place % canvas.width) + 0.5) / times - 0.5;
    const value = between(at, y, x);
    pixels.data[4 * place + 3] = 255 * Math.min(1, Math.max(0, 4 * (value - 0.45) + 0.5));
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** One canvas for each map of the first layers: {height, width, canvases} for each layer. */
let mapRows = [];
function layOutMaps(shapes) {
  const fits = (row, index) => row.shape === shapes[index].join();
  if (mapRows.length === shapes.length && mapRows.every(fits)) return;
  mapRows = shapes.map(([count, height, width]) => {
    const canvases = Array.from({length: count}, () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [width, height];
      return canvas;
    });
    return {shape: [count, height, width].join(), count, height, width, canvases};
  });
  find("maps").replaceChildren(...mapRows.map((row, index) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = `Layer ${index + 1}: ${row.count} maps of ${row.height} × ${row.width}`;
    const tiles = document.createElement("div");
    tiles.setAttribute("aria-hidden", "true");
    tiles.style.setProperty("--across", Math.min(8, Math.ceil(row.count / 2)));
    tiles.append(...row.canvases);
    figure.append(caption, tiles);
    return figure;
  }));
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Guess what is on the paper, and show all of it. */
function guess() {
  asked = false;
  const drawn = picture();
  const image = drawn.image ?? toMnist(inkOf(drawn.strokes));
  const layers = [];
  const guesses = probabilities(network, image ?? new Uint8Array(SIZE * SIZE), (layer, maps) => {
    if (layer.kind === "relu" && !layer.copy) layers.push(maps); // of several, the first copy
  });
  const first = layers.slice(0, SHOWN_LAYERS);
  drawPad(drawn);
  paint(find("seen"), image ?? [], 255);
  layOutMaps(first.map(({channels, height, width}) => [channels, height, width]));
  first.forEach(({height, width, values}, index) => {
    const most = values.reduce((a, b) => Math.max(a, b), 0.1);
    mapRows[index].canvases.forEach((canvas, map) => {
      const from = map * height * width;
      paint(canvas, image ? values.subarray(from, from + height * width) : [], most);
    });
  });
  const best = guesses.indexOf(Math.max(...guesses));
  const [digit, hint] = [find("digit"), find("hint")];
  digit.textContent = image ? best : "";
  digit.style.opacity = image ? 0.7 + 0.3 * guesses[best] : 1; // paler while it is unsure
  hint.hidden = Boolean(image) || drawn.strokes.length > 0;
  [...find("bars").children].forEach((row, index) => {
    const share = image ? guesses[index] : 0;
    row.classList.toggle("best", image !== null && index === best);
    row.style.setProperty("--share", share);
    const [exact, rounded] = row.lastElementChild.children;
    exact.textContent = image ? percent(share) : "";
    rounded.textContent = image ? Math.round(100 * share) : "";
  });
  clearTimeout(speaking);
  speaking = setTimeout(() => {
    const words = `${hello ? "Example" : "Reads"} ${best}, ${percent(guesses[best])}`;
    const said = image ? words : "Nothing drawn";
    if (find("spoken").textContent !== said) find("spoken").textContent = said;
  }, 700);
}

/** Guess before the next picture is shown: strokes move more often than screens change. */
function ask() {
  if (!asked) requestAnimationFrame(guess);
  asked = true;
}

function showFacts() {
  const bytes = 4 * network.parameters;
  find("count").textContent = network.parameters.toLocaleString("en");
  find("parameters").textContent = network.parameters.toLocaleString("en");
  find("size").textContent = `${Math.round(bytes / 1000)} kB`;
  find("accuracy").textContent = `${network.accuracy} %`;
}


// -------------------------------------------------------------------- what people can do

function undo() {
  stopHello();
  past.pop();
  ask();
}

function clearAll() {
  stopHello();
  if (past.length && past.at(-1) !== null) past.push(null);
  ask();
}

/** Strokes by mouse, finger or pen; only a pen's pressure is to be trusted. */
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
    stopHello();
    pointer = event.pointerId;
    pad.setPointerCapture(pointer);
    stroke = [point(event)];
    past.push(stroke);
    ask();
  });
  pad.addEventListener("pointermove", (event) => {
    if (event.pointerId === pointer && !(event.buttons & 1)) pointer = null; // let go elsewhere
    if (event.pointerId !== pointer || past.at(-1) !== stroke) return; // undone meanwhile
    const events = event.getCoalescedEvents?.() ?? [];
    for (const next of (events.length ? events : [event]).map(point)) {
      const last = stroke.at(-1); // a fast mouse sends more points than can be told apart
      if (Math.hypot(...next.map((value, axis) => value - last[axis])) >= 0.4) stroke.push(next);
    }
    ask();
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
      stopHello();
      past.push(sample);
      ask();
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
      ask();
    });
    const text = document.createElement("span");
    text.textContent = entry.name.replace("model", "");
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

/** Colours, and with them all that is shown. */
function repaint() {
  readColours();
  SAMPLES.forEach(({image}, index) => {
    paint(find("samples").children[index].firstChild, image, 255);
  });
  ask();
}

// A digit that writes itself when the page opens, until somebody draws.
const HELLO = [[33, 34], [43, 24], [59, 21], [72, 29], [72, 42], [61, 52], [49, 54], [63, 56],
  [77, 66], [77, 81], [65, 92], [48, 93], [33, 84]];
let hello = null;

/** Points on a smooth curve through some (Catmull and Rom, 1974). */
function curve(points) {
  const result = [];
  for (let at = 0; at < points.length - 1; at++) {
    const [a, b, c, d] = [-1, 0, 1, 2].map(
      (step) => points[Math.min(points.length - 1, Math.max(0, at + step))]);
    for (let t = 0; t < 1; t += 0.1) {
      result.push([0, 1].map((axis) => b[axis] + 0.5 * t * (c[axis] - a[axis]
        + t * (2 * a[axis] - 5 * b[axis] + 4 * c[axis] - d[axis]
        + t * (3 * (b[axis] - c[axis]) + d[axis] - a[axis])))).concat(PEN));
    }
  }
  return result;
}

function sayHello() {
  const points = curve(HELLO);
  const start = performance.now() + 400;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  past.push([]);
  hello = (now) => {
    if (!hello) return;
    const share = still ? 1 : Math.min(1, Math.max(0, (now - start) / 1100));
    past[0] = points.slice(0, Math.ceil(share * points.length));
    ask();
    if (share < 1) requestAnimationFrame(hello);
  };
  requestAnimationFrame(hello);
}

/** What wrote itself goes when somebody does something, as if it had not been there. */
function stopHello() {
  if (hello) past.length = 0;
  hello = null;
}

addBars();
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
new ResizeObserver(ask).observe(find("pad"));
addEventListener("resize", ask); // a browser's zoom changes the density alone
repaint();
sayHello();
