// The arithmetic of the live solver, in AssemblyScript: `make kernel` compiles it to kernel.wasm. The
// functions of `plain` in machine.mjs do the same where a browser has no SIMD.
//
// Every place in memory is counted in floats, as are strides. Numbers of columns are multiples of 4,
// so that a row is a row of vectors: machine.mjs pads what is not.

// @ts-ignore: decorator
@inline
function at(place: i32): usize {
  return (<usize>place) << 2;
}

// @ts-ignore: decorator
@inline
function load(place: usize): v128 {
  return v128.load(place);
}

// @ts-ignore: decorator
@inline
function total(v: v128): f32 {
  return f32x4.extract_lane(v, 0) + f32x4.extract_lane(v, 1) + f32x4.extract_lane(v, 2) + f32x4.extract_lane(v, 3);
}

// @ts-ignore: decorator
@inline
function madd(a: v128, b: v128, c: v128): v128 {
  return f32x4.add(f32x4.mul(a, b), c);
}

// exp of four numbers, to a unit in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]
// (the coefficients are those of Cephes' expf).
// @ts-ignore: decorator
@inline
function exp4(x: v128): v128 {
  x = f32x4.min(f32x4.max(x, f32x4.splat(-87)), f32x4.splat(88));
  const n = f32x4.nearest(f32x4.mul(x, f32x4.splat(1.44269504)));
  const r = madd(n, f32x4.splat(2.12194440e-4), madd(n, f32x4.splat(-0.693359375), x));
  let p = madd(f32x4.splat(1.9875691500e-4), r, f32x4.splat(1.3981999507e-3));
  p = madd(p, r, f32x4.splat(8.3334519073e-3));
  p = madd(p, r, f32x4.splat(4.1665795894e-2));
  p = madd(p, r, f32x4.splat(1.6666665459e-1));
  p = madd(p, r, f32x4.splat(0.5));
  p = f32x4.add(madd(p, f32x4.mul(r, r), r), f32x4.splat(1));
  const power = i32x4.shl(i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)), 23);
  return f32x4.mul(p, power);
}

// C (m, n) = A (m, k) · B (k, n). Columns of B come eight by eight: those of panel p begin at
// b + p · panel, and a row of the panel is ldb after the one before. A matrix as it lies in memory has
// panel 8 and ldb n; packed, panel 8k and ldb 8, it is read from front to end.
export function product(
  a: i32, lda: i32, b: i32, ldb: i32, panel: i32, c: i32, ldc: i32, m: i32, k: i32, n: i32,
): void {
  for (let j = 0; j < n; j += 8) {
    const own = b + (j >> 3) * panel;
    let i = 0;
    for (; i + 4 <= m; i += 4) {
      if (j + 8 <= n) tile(at(a + i * lda), at(lda), at(own), at(ldb), at(c + i * ldc + j), at(ldc), k);
      else narrow(at(a + i * lda), at(lda), at(own), at(ldb), at(c + i * ldc + j), at(ldc), k);
    }
    for (; i < m; i++) {
      for (let q = j; q < n && q < j + 8; q += 4) {
        row(at(a + i * lda), at(own + q - j), at(ldb), at(c + i * ldc + q), k);
      }
    }
  }
}

// Four rows by eight columns: eight sums in registers.
function tile(a: usize, lda: usize, b: usize, ldb: usize, c: usize, ldc: usize, k: i32): void {
  const a1 = a + lda, a2 = a1 + lda, a3 = a2 + lda;
  let s00 = f32x4.splat(0), s01 = s00, s10 = s00, s11 = s00, s20 = s00, s21 = s00, s30 = s00, s31 = s00;
  for (let end = <usize>k << 2, i: usize = 0; i < end; i += 4) {
    const left = load(b), right = v128.load(b, 16);
    let x = v128.load_splat<f32>(a + i);
    s00 = madd(x, left, s00);
    s01 = madd(x, right, s01);
    x = v128.load_splat<f32>(a1 + i);
    s10 = madd(x, left, s10);
    s11 = madd(x, right, s11);
    x = v128.load_splat<f32>(a2 + i);
    s20 = madd(x, left, s20);
    s21 = madd(x, right, s21);
    x = v128.load_splat<f32>(a3 + i);
    s30 = madd(x, left, s30);
    s31 = madd(x, right, s31);
    b += ldb;
  }
  const c1 = c + ldc, c2 = c1 + ldc, c3 = c2 + ldc;
  v128.store(c, s00);
  v128.store(c, s01, 16);
  v128.store(c1, s10);
  v128.store(c1, s11, 16);
  v128.store(c2, s20);
  v128.store(c2, s21, 16);
  v128.store(c3, s30);
  v128.store(c3, s31, 16);
}

// Four rows by four columns.
function narrow(a: usize, lda: usize, b: usize, ldb: usize, c: usize, ldc: usize, k: i32): void {
  for (let i: usize = 0; i < 4; i++) row(a + i * lda, b, ldb, c + i * ldc, k);
}

// One row by four columns.
function row(a: usize, b: usize, ldb: usize, c: usize, k: i32): void {
  let sum = f32x4.splat(0);
  for (let i = 0; i < k; i++) {
    sum = madd(v128.load_splat<f32>(a), load(b), sum);
    a += 4;
    b += ldb;
  }
  v128.store(c, sum);
}

// out = silu(gate) · up, each (rows, n); gate and up have rows `ld` apart, those of out lie close.
export function swish(gate: i32, up: i32, ld: i32, out: i32, rows: i32, n: i32): void {
  const one = f32x4.splat(1);
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < n; i += 4) {
      const g = load(at(gate + r * ld + i));
      const s = f32x4.div(g, f32x4.add(one, exp4(f32x4.neg(g))));
      v128.store(at(out + r * n + i), f32x4.mul(s, load(at(up + r * ld + i))));
    }
  }
}

// h (rows, n) plus `add`, if there is one, divided by the root mean square of each row's first
// `count` numbers, those after them being zeros.
export function normRows(h: i32, add: i32, rows: i32, n: i32, count: i32): void {
  for (let r = 0; r < rows; r++) {
    const own = h + r * n;
    let squares = f32x4.splat(0);
    for (let i = 0; i < n; i += 4) {
      let v = load(at(own + i));
      if (add) v = f32x4.add(v, load(at(add + r * n + i)));
      v128.store(at(own + i), v);
      squares = madd(v, v, squares);
    }
    const scale = f32x4.splat(1 / sqrt(total(squares) / <f32>count + 1e-5));
    for (let i = 0; i < n; i += 4) v128.store(at(own + i), f32x4.mul(load(at(own + i)), scale));
  }
}

// The same with the root mean square of each column.
export function normColumns(h: i32, add: i32, rows: i32, n: i32): void {
  for (let i = 0; i < n; i += 4) {
    let squares = f32x4.splat(0);
    for (let r = 0; r < rows; r++) {
      let v = load(at(h + r * n + i));
      if (add) v = f32x4.add(v, load(at(add + r * n + i)));
      v128.store(at(h + r * n + i), v);
      squares = madd(v, v, squares);
    }
    const mean = f32x4.div(squares, f32x4.splat(<f32>rows));
    const scale = f32x4.div(f32x4.splat(1), f32x4.sqrt(f32x4.add(mean, f32x4.splat(1e-5))));
    for (let r = 0; r < rows; r++) {
      v128.store(at(h + r * n + i), f32x4.mul(load(at(h + r * n + i)), scale));
    }
  }
}

// Turn pairs (j, j + half) of each head of `size` numbers, rows `ld` apart, by the angles of the row
// (count, size); a head has `parts` parts with pairs of their own.
export function rotate(h: i32, ld: i32, cos: i32, sin: i32, count: i32, heads: i32, size: i32, parts: i32): void {
  const half = size / parts / 2;
  for (let r = 0; r < count; r++) {
    for (let head = 0; head < heads; head++) {
      for (let first = 0; first < size; first += 2 * half) {
        for (let j = first; j < first + half; j++) {
          const one = at(h + r * ld + head * size + j), two = one + at(half);
          const angle = at(r * size + j), x = f32.load(one), y = f32.load(two);
          f32.store(one, x * f32.load(at(cos) + angle) - y * f32.load(at(sin) + angle));
          f32.store(two, y * f32.load(at(cos) + angle) + x * f32.load(at(sin) + angle));
        }
      }
    }
  }
}

// out (n, ldo) = the first n columns of h (rows, ·), turned.
export function turn(h: i32, ld: i32, out: i32, ldo: i32, rows: i32, n: i32): void {
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < n; i++) f32.store(at(out + i * ldo + r), f32.load(at(h + r * ld + i)));
  }
}

// The softmax of scale · h (rows, n) over the first `count` numbers of each row.
export function softmax(h: i32, rows: i32, n: i32, count: i32, scale: f32): void {
  for (let r = 0; r < rows; r++) {
    const own = h + r * n;
    let most = f32.load(at(own));
    for (let i = 1; i < count; i++) most = max(most, f32.load(at(own + i)));
    for (let i = count; i < n; i++) f32.store(at(own + i), -Infinity);
    let sum = f32x4.splat(0);
    for (let i = 0; i < n; i += 4) {
      const v = exp4(f32x4.mul(f32x4.sub(load(at(own + i)), f32x4.splat(most)), f32x4.splat(scale)));
      v128.store(at(own + i), v);
      sum = f32x4.add(sum, v);
    }
    const share = f32x4.splat(1 / total(sum));
    for (let i = 0; i < n; i += 4) v128.store(at(own + i), f32x4.mul(load(at(own + i)), share));
  }
}

// out = a + (b + c); of b or c, what is at 0 is left out.
export function sum(a: i32, b: i32, c: i32, out: i32, n: i32): void {
  const zero = f32x4.splat(0);
  for (let i = 0; i < n; i += 4) {
    const second = b ? load(at(b + i)) : zero, third = c ? load(at(c + i)) : zero;
    v128.store(at(out + i), f32x4.add(load(at(a + i)), f32x4.add(second, third)));
  }
}

// z becomes λ z + (1 − λ) h, plus what is at `noise` if it is not 0; n numbers.
export function blend(z: i32, h: i32, damping: f32, noise: i32, n: i32): void {
  const keep = f32x4.splat(damping), take = f32x4.splat(1 - damping);
  for (let i = 0; i < n; i += 4) {
    let v = madd(load(at(z + i)), keep, f32x4.mul(load(at(h + i)), take));
    if (noise) v = f32x4.add(v, load(at(noise + i)));
    v128.store(at(z + i), v);
  }
}
