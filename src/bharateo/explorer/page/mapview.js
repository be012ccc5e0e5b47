"use strict";

/* A canvas that is moved and zoomed with mouse, fingers and keys. Places are in pixels of the area. */
class MapView {
  /** `draw(context, view)` draws in pixels of the area; `choose(x, y, event)` is told of a click.
      While there is a `brush`, dragging paints: `brush(x, y, begins)`. */
  constructor(canvas, draw, choose) {
    Object.assign(this, { canvas, draw, choose, brush: null });
    this.width = this.height = 1;
    this.x = this.y = 0.5;
    this.scale = 1;
    this.pointers = new Map();
    this.context = canvas.getContext("2d", { alpha: false });
    new ResizeObserver(() => this.resize()).observe(canvas);
    for (const [kind, handler] of Object.entries({
      pointerdown: this.down, pointermove: this.move, pointerup: this.up, pointercancel: this.up,
    })) canvas.addEventListener(kind, handler.bind(this));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  /** Show another area, all of it. */
  open(width, height) {
    Object.assign(this, { width, height });
    this.fit();
  }

  get size() {
    return [this.canvas.clientWidth || 1, this.canvas.clientHeight || 1];
  }

  get fitting() {
    const [width, height] = this.size;
    return 0.96 * Math.min(width / this.width, height / this.height);
  }

  fit() {
    this.whole = true;
    this.x = this.width / 2;
    this.y = this.height / 2;
    this.scale = this.fitting;
    this.redraw();
  }

  resize() {
    const [width, height] = this.size;
    const dense = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    if (this.whole) this.fit();
    else this.paint();
  }

  /** Zoom by a factor; the place under a point of the canvas stays there. */
  zoom(factor, point = this.size.map((side) => side / 2)) {
    const [x, y] = this.toArea(point);
    this.scale = Math.max(0.5 * this.fitting, Math.min(24, this.scale * factor));
    const [width, height] = this.size;
    this.centre(x - (point[0] - width / 2) / this.scale, y - (point[1] - height / 2) / this.scale);
  }

  centre(x, y) {
    this.whole = false;
    this.x = Math.max(0, Math.min(this.width, x));
    this.y = Math.max(0, Math.min(this.height, y));
    this.redraw();
  }

  pan(dx, dy) {
    this.centre(this.x - dx / this.scale, this.y - dy / this.scale);
  }

  /** Bring a rectangle into view, if it is not, at a scale at which it can be seen. */
  reveal(x, y, side, leastSide) {
    if (side * this.scale < leastSide) this.scale = leastSide / side;
    const [width, height] = this.size;
    const [right, down] = [width / 2 - 40, height / 2 - 40].map((each) => Math.max(each, 1) / this.scale);
    if (Math.abs(x - this.x) > right || Math.abs(y - this.y) > down) this.centre(x, y);
    else this.redraw();
  }

  /** Where in the area a point of the canvas is. */
  toArea([x, y]) {
    const [width, height] = this.size;
    return [this.x + (x - width / 2) / this.scale, this.y + (y - height / 2) / this.scale];
  }

  /** Where on the canvas a place is. */
  toCanvas(x, y) {
    const [width, height] = this.size;
    return [width / 2 + (x - this.x) * this.scale, height / 2 + (y - this.y) * this.scale];
  }

  redraw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => this.paint());
  }

  paint() {
    cancelAnimationFrame(this.asked);
    this.asked = 0;
    const { canvas, context } = this;
    const [width, height] = this.size;
    const dense = canvas.width / width;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = getComputedStyle(canvas).backgroundColor;
    context.fillRect(0, 0, canvas.width, canvas.height);
    const scale = this.scale * dense;
    context.setTransform(
      scale, 0, 0, scale, (width / 2) * dense - this.x * scale, (height / 2) * dense - this.y * scale,
    );
    this.draw(context, this);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  down(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.point(event));
    this.moved = this.pointers.size > 1 ? Infinity : 0;
    this.painting = false;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.point(event);
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    this.moved += Math.hypot(dx, dy);
    if (this.pointers.size === 1 && this.moved < 5) return;
    this.pointers.set(event.pointerId, now);
    if (this.pointers.size === 1 && this.brush && !event.shiftKey && this.moved < Infinity) {
      if (!this.painting) this.brush(...this.toArea(before), true);
      this.painting = true;
      return this.brush(...this.toArea(now), false);
    }
    if (this.pointers.size === 1) return this.pan(dx, dy);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
    const apart = (point) => Math.max(Math.hypot(point[0] - other[0], point[1] - other[1]), 1);
    this.zoom(apart(now) / apart(before), [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2]);
    this.pan(dx / 2, dy / 2);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (event.type === "pointerup" && this.moved < 5) this.choose(...this.toArea(this.point(event)), event);
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode ? 16 : 1;
    this.zoom(Math.exp(-Math.max(-240, Math.min(240, event.deltaY * lines)) * 0.0022), this.point(event));
  }
}
