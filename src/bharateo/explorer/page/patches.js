"use strict";

/* An area as loaded: its pictures, and what is known of its patches. */
class Patches {
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
    area.corners = record.corners;
    area.errorTop = record.error_top;
    area.splitNames = record.splits;
    const names = ["row", "col", "split", "label", "purity", "vectors", "probabilities", "suspect", "error", "copy_error"];
    const arrays = await Promise.all(names.map((name) => record[name] && explorer.unpacked(record[name])));
    names.forEach((name, i) => { area[name] = arrays[i] ?? null; });
    area.pictures = await Promise.all(record.pictures.map(explorer.picture));
    area.labels = record.labels && (await explorer.picture(record.labels));
    area.count = area.row.length;
    area.dims = area.vectors.length / Math.max(area.count, 1);
    area.length = Float32Array.from({ length: area.count }, (_, i) => Math.sqrt(area.product(i, i)) || 1);
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

  /** The scalar product of two patches' vectors. */
  product(one, other) {
    const { vectors, dims } = this;
    let [a, b, sum] = [one * dims, other * dims, 0];
    for (let dim = 0; dim < dims; dim++) sum += vectors[a++] * vectors[b++];
    return sum;
  }

  /** The patches most like one, best first: [patch, cosine]. */
  nearest(patch, count) {
    const cosine = Float32Array.from({ length: this.count }, (_, other) =>
      this.product(patch, other) / (this.length[patch] * this.length[other]));
    cosine[patch] = -2;
    const order = Array.from(cosine.keys()).sort((a, b) => cosine[b] - cosine[a] || a - b);
    return order.slice(0, Math.min(count, this.count - 1)).map((other) => [other, cosine[other]]);
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

  /** Longitude and latitude of a pixel, between those of the corners. */
  lonLat(x, y) {
    const [u, v] = [x / this.shape[1], y / this.shape[0]];
    const [a, b, c, d] = this.corners;
    return [0, 1].map((i) => (1 - v) * ((1 - u) * a[i] + u * b[i]) + v * ((1 - u) * c[i] + u * d[i]));
  }

  /** Metres on the ground that a pixel is wide, in the middle. */
  get metresPerPx() {
    const [x, y] = [this.shape[1] / 2, this.shape[0] / 2];
    const [one, other] = [this.lonLat(x, y), this.lonLat(x + 1, y)];
    const east = (other[0] - one[0]) * Math.cos((one[1] * Math.PI) / 180);
    return (Math.hypot(east, other[1] - one[1]) * Math.PI * 6371008.8) / 180;
  }
}
