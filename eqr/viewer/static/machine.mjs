// One outer iteration of a model (eqr.model.Reasoner.step) for the worker, on the kernel of kernel.ts.

const EPS = 1e-5; // of the RMS norm, as eqr.layers
const ROPE_BASE = 10000;

// The functions of kernel.ts for a browser without SIMD.
export function plain(size) {
  const heap = new Float32Array(size);
  const norm = (h, add, count, step, many, apart, divisor) => {
    for (let r = 0; r < many; r++) {
      let squares = 0;
      for (let i = 0, own = h + r * apart; i < count; i++, own += step) {
        if (add) heap[own] += heap[add + own - h];
        squares += heap[own] ** 2;
      }
      const scale = 1 / Math.sqrt(squares / divisor + EPS);
      for (let i = 0, own = h + r * apart; i < count; i++, own += step) heap[own] *= scale;
    }
  };
  return {
    heap,
    product(a, lda, b, ldb, panel, c, ldc, m, k, n) {
      for (let i = 0; i < m; i++) {
        for (let j = 0; j < n; j++) {
          let sum = 0;
          const own = b + (j >> 3) * panel + (j & 7);
          for (let q = 0; q < k; q++) sum += heap[a + i * lda + q] * heap[own + q * ldb];
          heap[c + i * ldc + j] = sum;
        }
      }
    },
    swish(gate, up, ld, out, rows, n) {
      for (let r = 0; r < rows; r++) {
        for (let i = 0; i < n; i++) {
          const g = heap[gate + r * ld + i];
          heap[out + r * n + i] = (g / (1 + Math.exp(-g))) * heap[up + r * ld + i];
        }
      }
    },
    normRows: (h, add, rows, n, count) => norm(h, add, n, 1, rows, n, count),
    normColumns: (h, add, rows, n) => norm(h, add, rows, n, n, 1, rows),
    rotate(h, ld, cos, sin, count, heads, size, parts) {
      const half = size / parts / 2;
      for (let r = 0; r < count; r++) {
        for (let i = 0; i < heads * size; i++) {
          if (Math.floor(i / half) % 2) continue; // the second of a pair
          const one = h + r * ld + i, two = one + half, angle = r * size + (i % size);
          const x = heap[one], y = heap[two];
          heap[one] = x * heap[cos + angle] - y * heap[sin + angle];
          heap[two] = y * heap[cos + angle] + x * heap[sin + angle];
        }
      }
    },
    turn(h, ld, out, ldo, rows, n) {
      for (let r = 0; r < rows; r++) for (let i = 0; i < n; i++) heap[out + i * ldo + r] = heap[h + r * ld + i];
    },
    softmax(h, rows, n, count, scale) {
      for (let own = h; own < h + rows * n; own += n) {
        const scores = heap.subarray(own, own + count), most = Math.max(...scores);
        let sum = 0;
        scores.forEach((score, i) => (sum += scores[i] = Math.exp((score - most) * scale)));
        scores.forEach((share, i) => (scores[i] = share / sum));
      }
    },
    sum(a, b, c, out, n) {
      for (let i = 0; i < n; i++) heap[out + i] = heap[a + i] + ((b && heap[b + i]) + (c && heap[c + i]));
    },
    blend(z, h, damping, noise, n) {
      for (let i = 0; i < n; i++) {
        heap[z + i] = damping * heap[z + i] + (1 - damping) * heap[h + i] + (noise && heap[noise + i]);
      }
    },
  };
}

// The compiled kernel with memory for `size` floats.
export function compiled(module, size) {
  const { exports } = new WebAssembly.Instance(module);
  exports.memory.grow(Math.ceil((4 * size) / 65536));
  return { ...exports, heap: new Float32Array(exports.memory.buffer) };
}

const up = (count, step) => Math.ceil(count / step) * step;

// The numbers of a float16 each, from their bytes in base 64.
function halves(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return Float32Array.from(new Uint16Array(bytes.buffer), (bits) => {
    const exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024, sign = bits >> 15 ? -1 : 1;
    return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
  });
}

// A model that iterates one row at a time.
//   facts    what eqr.viewer.onnx.describe says of it
//   weights  {shapes: {name: [rows, columns]}, data}: its tensors one after the other, as float16
//   open     (size) => a kernel with memory for so many floats
export class Machine {
  constructor(facts, { shapes, data }, open) {
    const { model, task } = facts;
    Object.assign(this, model, { facts });
    this.cells = task.height * task.width;
    this.tokens = this.prefix + this.cells;
    this.size = this.tokens * this.hidden; // of a latent
    const values = halves(data);
    let from = 0;
    this.tensors = {};
    for (const [name, shape] of Object.entries(shapes)) {
      const count = shape.reduce((a, b) => a * b, 1);
      this.tensors[name] = { shape, values: values.subarray(from, (from += count)) };
    }
    this.filled = []; // what is written into memory once there is one
    this.end = 4; // place 0 stands for "none"
    this.blocks = Array.from({ length: model.blocks }, (_, k) => this.block(`blocks.${k}`));
    this.head = this.packed("lm_head.weight");
    for (const name of ["high", "low", "problem", "h", "added", "noise"]) this[name] = this.place(this.size);
    const widest = Math.max(...this.blocks.flatMap((b) => [b.mixer.room, b.channel.room]));
    this.wide = this.place(widest);
    this.inner = this.place(widest);
    this.logits = this.place(this.cells * this.head.n);
    this.kernel = open(this.end);
    for (const { at, values } of this.filled) this.kernel.heap.set(values, at);
  }

  place(count) {
    const at = this.end;
    this.end += up(count, 4);
    return at;
  }

  fill(values) {
    const at = this.place(values.length);
    this.filled.push({ at, values });
    return at;
  }

  // A linear map's weight (n, k) turned and in panels of eight columns, as `product` reads it best;
  // with `parts`, each of so many equal parts is padded to `n` rows divisible by 4.
  packed(name, parts = 1) {
    const { shape: [all, k], values } = this.tensors[name];
    const each = all / parts, padded = up(each, 4), n = parts * padded;
    const made = new Float32Array(up(n, 8) * k);
    for (let row = 0; row < all; row++) {
      const j = Math.floor(row / each) * padded + (row % each);
      for (let q = 0; q < k; q++) made[((j >> 3) * k + q) * 8 + (j & 7)] = values[row * k + q];
    }
    return { at: this.fill(made), n, k };
  }

  block(name) {
    const { tokens, hidden } = this;
    const width = this.tensors[`${name}.channel.down.weight`].shape[1];
    const wide = this.packed(`${name}.channel.gate_up.weight`, 2);
    const down = this.padded(`${name}.channel.down.weight`, wide.n / 2);
    const channel = { wide, down, width, room: tokens * wide.n };
    if (this.mixer === "attention") {
      const qkv = this.packed(`${name}.mixer.qkv.weight`), out = this.packed(`${name}.mixer.out.weight`);
      this.angles ||= this.rotary();
      const room = tokens * 3 * hidden + up(tokens, 4) * (tokens + hidden / this.heads);
      return { mixer: { qkv, out, room }, channel };
    }
    const mixer = `${name}.mixer.swiglu`, rows = this.tensors[`${mixer}.down.weight`].shape[1];
    return {
      mixer: {
        wide: this.fill(this.tensors[`${mixer}.gate_up.weight`].values),
        down: this.fill(this.tensors[`${mixer}.down.weight`].values),
        rows, room: 2 * rows * hidden,
      },
      channel,
    };
  }

  // A weight (n, k) whose input has been padded to k = `wanted`.
  padded(name, wanted) {
    const { shape: [n, k], values } = this.tensors[name];
    const wider = new Float32Array(n * wanted);
    for (let row = 0; row < n; row++) wider.set(values.subarray(row * k, (row + 1) * k), row * wanted);
    this.tensors[name] = { shape: [n, wanted], values: wider };
    return this.packed(name);
  }

  // Cosines and sines of the rotary angles (tokens, head size), as eqr.layers.rope_table.
  rotary() {
    const size = this.hidden / this.heads, parts = { none: 0, "1d": 1, "2d": 2 }[this.rope];
    const { width } = this.facts.task, part = size / parts;
    const angles = new Float32Array(parts && this.tokens * size).map((_, i) => {
      const token = Math.floor(i / size), j = i % size;
      const place = parts === 1 ? token : j < part ? Math.floor(token / width) : token % width;
      return place * Math.fround(1 / Math.fround(ROPE_BASE ** (2 * (j % (part / 2)) / part)));
    });
    return { parts, cos: this.fill(angles.map(Math.cos)), sin: this.fill(angles.map(Math.sin)) };
  }

  // What the latents get of a problem.
  pose(inputs) {
    const { hidden, prefix, tensors } = this, scale = Math.fround(Math.sqrt(hidden));
    const made = new Float32Array(this.size);
    if (prefix) made.set(tensors.prefix.values);
    inputs.forEach((token, i) => {
      made.set(tensors["embed.weight"].values.subarray(token * hidden, (token + 1) * hidden), (prefix + i) * hidden);
    });
    this.kernel.heap.set(made.map((value) => value * scale), this.problem);
  }

  // One outer iteration on the latents of one row, which are changed in place.
  //   noise  () => the next standard normal draws of an update, or null without noise
  iterate(high, low, { noise, beta, damping }) {
    const before = [high.slice(), low.slice()], { heap } = this.kernel;
    heap.set(high, this.high);
    heap.set(low, this.low);
    const update = (z, name, other, problem) => {
      this.kernel.sum(z, other, problem, this.h, this.size);
      for (const block of this.blocks) this.apply(block);
      if (noise) this.stir(noise(), beta, this.tensors[`noise_${name}`]);
      this.kernel.blend(z, this.h, damping, noise ? this.noise : 0, this.size);
    };
    for (let cycle = 0; cycle < this.high_cycles; cycle++) {
      for (let k = 0; k < this.low_cycles; k++) {
        if (this.hierarchical) update(this.low, "low", this.high, this.problem);
        else update(this.high, "high", 0, this.problem);
      }
      if (this.hierarchical) update(this.high, "high", this.low, 0);
    }
    high.set(heap.subarray(this.high, this.high + high.length));
    low.set(heap.subarray(this.low, this.low + low.length));
    return { ...this.read(high), residual: change(before, [high, low]) };
  }

  // β times the draws, times the gain that a model may have learned for each channel.
  stir(draws, beta, gain) {
    const { hidden } = this;
    const gains = gain ? gain.values.map((g) => beta * Math.exp(g)) : new Float32Array(hidden).fill(beta);
    draws.forEach((value, i) => (this.kernel.heap[this.noise + i] = value * gains[i % hidden]));
  }

  read(high) {
    const { head, hidden, tensors } = this, { heap } = this.kernel, words = this.facts.vocab_size;
    const first = this.high + this.prefix * hidden;
    this.kernel.product(first, hidden, head.at, 8, 8 * head.k, this.logits, head.n, this.cells, head.k, head.n);
    const logits = Array.from({ length: this.cells }, (_, s) => {
      const at = this.logits + s * head.n;
      return heap.slice(at, at + words);
    });
    const weight = tensors["halt_head.weight"].values;
    const halt = weight.reduce((sum, w, i) => sum + w * high[i], tensors["halt_head.bias"].values[0]);
    return { logits, halt };
  }

  // A block on h: mixer and channel SwiGLU, each followed by its sum and norm.
  apply({ mixer, channel }) {
    const { h, added, tokens, hidden, wide, inner } = this;
    if (mixer.qkv) {
      this.attend(mixer);
      this.kernel.normRows(h, added, tokens, hidden, hidden);
    } else {
      const { rows } = mixer;
      this.kernel.product(mixer.wide, tokens, h, hidden, 8, wide, hidden, 2 * rows, tokens, hidden);
      this.kernel.swish(wide, wide + rows * hidden, 0, inner, 1, rows * hidden);
      if (this.norm_swiglu) this.kernel.normColumns(inner, 0, rows, hidden);
      this.kernel.product(mixer.down, rows, inner, hidden, 8, added, hidden, tokens, rows, hidden);
      this.kernel.normColumns(h, added, tokens, hidden);
    }
    const width = channel.wide.n / 2;
    this.linear(h, hidden, channel.wide, wide);
    this.kernel.swish(wide, wide + width, 2 * width, inner, tokens, width);
    if (this.norm_swiglu) this.kernel.normRows(inner, 0, tokens, width, channel.width);
    this.linear(inner, width, channel.down, added);
    this.kernel.normRows(h, added, tokens, hidden, hidden);
  }

  // out (tokens, n) = what a packed weight makes of each token.
  linear(from, ld, { at, n, k }, out) {
    this.kernel.product(from, ld, at, 8, 8 * k, out, n, this.tokens, k, n);
  }

  attend({ qkv, out }) {
    const { tokens, hidden, heads, wide, inner, angles } = this;
    const size = hidden / heads, ld = 3 * hidden, padded = up(tokens, 4);
    const keys = wide + tokens * ld, scores = keys + size * padded;
    this.linear(this.h, hidden, qkv, wide);
    for (const part of angles.parts ? [0, hidden] : []) {
      this.kernel.rotate(wide + part, ld, angles.cos, angles.sin, tokens, heads, size, angles.parts);
    }
    for (let k = 0; k < heads; k++) {
      const query = wide + k * size;
      this.kernel.turn(query + hidden, ld, keys, padded, tokens, size);
      this.kernel.product(query, ld, keys, padded, 8, scores, padded, tokens, size, padded);
      this.kernel.softmax(scores, tokens, padded, tokens, 1 / Math.sqrt(size));
      this.kernel.product(scores, padded, query + 2 * hidden, ld, 8, inner + k * size, hidden, tokens, tokens, size);
    }
    this.linear(inner, hidden, out, this.added);
  }
}

// Root-mean-square change of a row's latents, as eqr.model.residual.
function change(before, after) {
  let sum = 0, count = 0;
  after.forEach((part, k) => {
    part.forEach((value, i) => (sum += (value - before[k][i]) ** 2));
    count += part.length;
  });
  return Math.sqrt(sum / count);
}
