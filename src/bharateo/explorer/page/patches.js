"use strict";

/* An area as loaded: its pictures, and what is known of its patches. */
class Patches {
  static UNLIKE = 0.5; // docs/lab-notes.md says what other weights reach

  static async open(page, about) {
    const record = await explorer.load(about.data);
    const area = new Patches();
    const [rows, cols] = about.shape;
    const gcd = (a, b) => (b ? gcd(b, a % b) : a);
    area.name = about.name;
    area.shape = about.shape;
    area.patchPx = page.run.patch_px;
    area.unit = gcd(record.unit_px, area.patchPx);
    area.numClasses = page.classes.length;
    area.outlines = record.outlines;
    area.knots = record.knots;
    area.errorTop = record.error_top;
    area.splitNames = record.splits;
    const names = ["row", "col", "split", "label", "purity", "vectors", "probabilities", "suspect", "distance", "error", "copy_error"];
    const arrays = await Promise.all(names.map((name) => record[name] && explorer.unpacked(record[name])));
    names.forEach((name, i) => { area[name] = arrays[i] ?? null; });
    area.pictures = await Promise.all(record.pictures.map(explorer.picture));
    area.labels = record.labels && (await explorer.picture(record.labels));
    area.count = area.row.length;
    area.dims = area.vectors.length / Math.max(area.count, 1);
    area.length = Float32Array.from({ length: area.count }, (_, patch) => Math.hypot(...area.vector(patch)) || 1);
    // Which patch every cell of the grid that all patches share belongs to.
    area.cellRows = Math.ceil(rows / area.unit);
    area.cellCols = Math.ceil(cols / area.unit);
    area.patchOfCell = new Int32Array(area.cellRows * area.cellCols).fill(-1);
    const side = area.patchPx / area.unit;
    for (let patch = 0; patch < area.count; patch++) {
      const [top, left] = [area.row[patch] / area.unit, area.col[patch] / area.unit];
      for (let row = top; row < Math.min(top + side, area.cellRows); row++) {
        const first = row * area.cellCols + left;
        area.patchOfCell.fill(patch, first, first + Math.min(side, area.cellCols - left));
      }
    }
    return area;
  }

  vector(patch) {
    return this.vectors.subarray(patch * this.dims, (patch + 1) * this.dims);
  }

  /** The patches most like some and least like others, best first: [patch, score]. The score is the
      mean cosine to the ones less UNLIKE times the mean cosine to the others, neither of which are
      among the found. Source: Rocchio 1971, "Relevance feedback in information retrieval". */
  ranked(alike, unlike, count) {
    if (!alike.length) return [];
    const { dims, length } = this;
    const wanted = new Float64Array(dims);
    for (const [patches, weight] of [[alike, 1], [unlike, -Patches.UNLIKE]]) {
      for (const patch of patches) {
        const share = weight / (patches.length * length[patch]);
        this.vector(patch).forEach((value, dim) => { wanted[dim] += share * value; });
      }
    }
    const score = Float64Array.from({ length: this.count }, (_, patch) => {
      let [sum, first] = [0, patch * dims];
      for (let dim = 0; dim < dims; dim++) sum += wanted[dim] * this.vectors[first + dim];
      return sum / length[patch];
    });
    const given = new Set([...alike, ...unlike]);
    const order = Array.from(score.keys()).filter((patch) => !given.has(patch));
    order.sort((a, b) => score[b] - score[a] || a - b);
    return order.slice(0, count).map((patch) => [patch, score[patch]]);
  }

  /** The patch at a pixel of the area, -1 where there is none. */
  at(x, y) {
    const [row, col] = [Math.floor(y / this.unit), Math.floor(x / this.unit)];
    if (row < 0 || col < 0 || row >= this.cellRows || col >= this.cellCols) return -1;
    return this.patchOfCell[row * this.cellCols + col];
  }

  centre(patch) {
    return [this.col[patch] + this.patchPx / 2, this.row[patch] + this.patchPx / 2];
  }

  /** The next patch in a direction, over gaps; the same one at the end. */
  beside(patch, dx, dy) {
    let [x, y] = this.centre(patch);
    const [rows, cols] = this.shape;
    for (;;) {
      x += dx * this.patchPx;
      y += dy * this.patchPx;
      if (x < 0 || y < 0 || x >= cols || y >= rows) return patch;
      const found = this.at(x, y);
      if (found >= 0) return found;
    }
  }

  /** Class probabilities of a patch. */
  chances(patch) {
    const first = patch * this.numClasses;
    return Array.from(this.probabilities.subarray(first, first + this.numClasses), (each) => each / 65535);
  }

  predicted(patch) {
    const chances = this.chances(patch);
    return chances.indexOf(Math.max(...chances));
  }

  /** 0 where the model is sure, 1 where it has no idea. */
  entropy(patch) {
    const sum = this.chances(patch).reduce((sum, each) => sum - (each > 0 ? each * Math.log(each) : 0), 0);
    return sum / Math.log(this.numClasses);
  }

  /** Longitude and latitude of a place in pixels, between those of the nearest knots. */
  lonLat(x, y) {
    const last = this.knots.length - 1;
    const [u, v] = [(x / this.shape[1]) * last, (y / this.shape[0]) * last];
    const [col, row] = [u, v].map((each) => Math.max(0, Math.min(last - 1, Math.floor(each))));
    const [right, down] = [u - col, v - row];
    const [[a, b], [c, d]] = [row, row + 1].map((each) => this.knots[each].slice(col, col + 2));
    return [0, 1].map((i) => (1 - down) * ((1 - right) * a[i] + right * b[i]) + down * ((1 - right) * c[i] + right * d[i]));
  }

  /** The place in pixels of a longitude and latitude, which may lie outside: Newton's method. */
  place(lon, lat) {
    let [y, x] = this.shape.map((side) => side / 2);
    for (let step = 0; step < 8; step++) {
      const [[a, b], [c, d], [e, f]] = [[0, 0], [1, 0], [0, 1]].map(([dx, dy]) => this.lonLat(x + dx, y + dy));
      const [east, north, turn] = [lon - a, lat - b, (c - a) * (f - b) - (e - a) * (d - b)];
      x += (east * (f - b) - north * (e - a)) / turn;
      y += (north * (c - a) - east * (d - b)) / turn;
    }
    return [x, y];
  }

  /** The corners of a patch, counter-clockwise. */
  outline(patch) {
    const [left, top, side] = [this.col[patch], this.row[patch], this.patchPx];
    return [[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]].map(([dx, dy]) => this.lonLat(left + dx * side, top + dy * side));
  }

  /** Metres on the ground that a pixel is wide, in the middle. */
  get metresPerPx() {
    const [x, y] = [this.shape[1] / 2, this.shape[0] / 2];
    const [one, other] = [this.lonLat(x, y), this.lonLat(x + 1, y)];
    const east = (other[0] - one[0]) * Math.cos((one[1] * Math.PI) / 180);
    return (Math.hypot(east, other[1] - one[1]) * Math.PI * 6371008.8) / 180;
  }
}
