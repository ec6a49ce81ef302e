"use strict";
// The box around the thing in a photo: drawn, moved, resized and pinched on the picture by mouse, touch or keyboard. Who asked for it
// is told when it is let go. A box is { x, y, width, height } in shares of the picture as it is shown, which is upright; null: all of it.
class Frame {
  static least = 0.04; // of the picture's width and height
  static reach = 22; // pixels from a corner that still take it
  static tap = 6; // pixels that a finger may slip
  static step = 0.02; // of a key

  constructor({ stage, box, image, button, note, changed, tapped }) {
    Object.assign(this, { stage, element: box, image, button, note, changed, tapped });
    this.box = this.told = null;
    this.wanted = false;
    this.pointers = new Map();
    this.gesture = null;
    image.addEventListener("load", () => this.place());
    const sizes = new ResizeObserver(() => this.place());
    for (const part of [image, stage.parentElement]) sizes.observe(part);
    stage.addEventListener("pointerdown", (e) => this.down(e));
    stage.addEventListener("pointermove", (e) => this.move(e));
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (e) => this.up(e, end === "pointercancel"));
    stage.addEventListener("click", () => { if (this.tap) this.tapped(); this.tap = false; });
    box.addEventListener("keydown", (e) => this.key(e));
    box.addEventListener("keyup", () => this.tell());
    box.addEventListener("blur", () => this.tell());
    button.addEventListener("click", () => this.toggle());
  }

  // With a photo or without one, and the box in it.
  show(photo, box) {
    this.wanted = photo;
    this.told = box;
    this.set(box);
    this.place();
  }

  // Lays the stage over the picture's pixels.
  place() {
    const there = this.wanted && this.image.naturalWidth > 0;
    this.stage.hidden = this.button.hidden = this.note.hidden = !there;
    if (!there) return;
    const outer = this.stage.parentElement.getBoundingClientRect(), inner = this.image.getBoundingClientRect();
    const where = { left: inner.left - outer.left, top: inner.top - outer.top, width: inner.width, height: inner.height };
    for (const [side, pixels] of Object.entries(where)) this.stage.style[side] = `${pixels}px`;
  }

  set(box) {
    this.box = box && Frame.inside(box);
    this.element.hidden = !box;
    this.button.textContent = box ? "Whole photo" : "Box";
    if (!box) return;
    const percent = (share) => `${(100 * share).toFixed(2)}%`;
    const { x, y, width, height } = this.box;
    Object.assign(this.element.style, { left: percent(x), top: percent(y), width: percent(width), height: percent(height) });
    const words = [x, y, width, height].map((share) => Math.round(100 * share));
    this.element.ariaLabel = `Box around the thing: ${words[0]} % from the left, ${words[1]} % from the top, ${words[2]} % wide, ${words[3]} % high`;
  }

  // Of at least the least size, within the picture, in four decimals.
  static inside({ x, y, width, height }) {
    const side = (start, length) => {
      length = Math.min(1, Math.max(Frame.least, Math.floor(1e4 * length + 0.5) / 1e4));
      return [Math.floor(1e4 * Math.min(Math.max(0, start), 1 - length) + 0.5) / 1e4, length];
    };
    [x, width] = side(x, width);
    [y, height] = side(y, height);
    return { x, y, width, height };
  }

  tell() {
    if (JSON.stringify(this.box) === JSON.stringify(this.told)) return;
    this.told = this.box;
    this.changed(this.box);
  }

  toggle() {
    this.set(this.box ? null : { x: 0.2, y: 0.2, width: 0.6, height: 0.6 });
    if (this.box) this.element.focus();
    this.tell();
  }

  // ---- by mouse and by touch ----

  down(e) {
    if (e.button) return;
    this.stage.setPointerCapture(e.pointerId);
    this.tap = false;
    this.pointers.set(e.pointerId, this.point(e));
    if (this.pointers.size === 1) this.gesture = this.grasp(this.point(e));
    else if (this.pointers.size === 2) {
      const { kind, before } = this.gesture; // what the first finger began to draw is forgotten
      this.gesture = { kind: "pinch", box: kind === "draw" ? before : this.box, fingers: [...this.pointers.values()], before, moved: false };
    }
  }

  // What a finger has hold of: a corner, the box, or the picture, where it draws another one.
  grasp(at) {
    const before = this.box, now = { before, from: at, moved: false };
    if (!before) return { kind: "draw", fixed: at, ...now };
    const { x, y, width, height } = before, { clientWidth: w, clientHeight: h } = this.stage;
    for (const [cx, cy] of [[x, y], [x + width, y], [x, y + height], [x + width, y + height]]) {
      if (Math.hypot((at.x - cx) * w, (at.y - cy) * h) < Frame.reach) return { kind: "draw", fixed: { x: 2 * x + width - cx, y: 2 * y + height - cy }, ...now };
    }
    const within = at.x > x && at.x < x + width && at.y > y && at.y < y + height;
    return within ? { kind: "move", ...now } : { kind: "draw", fixed: at, ...now };
  }

  move(e) {
    if (!this.pointers.has(e.pointerId) || !this.gesture) return;
    const at = this.point(e), g = this.gesture, { clientWidth: w, clientHeight: h } = this.stage;
    this.pointers.set(e.pointerId, at);
    if (g.kind === "over") return;
    if (g.kind === "pinch") return this.pinch(g, w, h);
    g.moved ||= Math.hypot((at.x - g.from.x) * w, (at.y - g.from.y) * h) >= Frame.tap;
    if (!g.moved) return;
    if (g.kind === "draw") this.set(Frame.between(g.fixed, at));
    if (g.kind === "move") this.set({ ...g.before, x: g.before.x + at.x - g.from.x, y: g.before.y + at.y - g.from.y });
  }

  // Two fingers scale the box and carry it along; where there is none they span one.
  pinch(g, w, h) {
    const [a, b] = g.fingers, [c, d] = [...this.pointers.values()];
    g.moved = true;
    if (!g.box) return this.set(Frame.between(c, d));
    const apart = (p, q) => Math.hypot((p.x - q.x) * w, (p.y - q.y) * h);
    const ratio = apart(c, d) / Math.max(1, apart(a, b));
    const width = Math.min(1, g.box.width * ratio), height = Math.min(1, g.box.height * ratio);
    const x = g.box.x + g.box.width / 2 + (c.x + d.x - a.x - b.x) / 2 - width / 2;
    const y = g.box.y + g.box.height / 2 + (c.y + d.y - a.y - b.y) / 2 - height / 2;
    this.set({ x, y, width, height });
  }

  up(e, cancelled) {
    if (!this.pointers.delete(e.pointerId)) return;
    const g = this.gesture;
    if (cancelled) this.set(g.before);
    if (this.pointers.size) return void (this.gesture = { ...g, kind: "over" }); // the other finger has let go of nothing new
    this.gesture = null;
    if (cancelled) return;
    if (!g.moved && g.kind === "draw") { // a tap beside the box takes it away; without one, another photo is chosen
      this.set(null);
      this.tap = !g.before;
    }
    this.tell();
  }

  static between(p, q) {
    return { x: Math.min(p.x, q.x), y: Math.min(p.y, q.y), width: Math.abs(p.x - q.x), height: Math.abs(p.y - q.y) };
  }

  point(e) {
    const stage = this.stage.getBoundingClientRect();
    const share = (pixel, start, length) => Math.min(1, Math.max(0, (pixel - start) / length));
    return { x: share(e.clientX, stage.left, stage.width), y: share(e.clientY, stage.top, stage.height) };
  }

  // ---- by keyboard: what it does is told when the key is let go ----

  key(e) {
    const [right, down] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[e.key] || [];
    const { x, y, width, height } = this.box;
    if (["Delete", "Backspace", "Escape"].includes(e.key)) { this.set(null); this.tell(); this.button.focus(); }
    else if (right === undefined || e.altKey || e.ctrlKey || e.metaKey) return;
    else if (e.shiftKey) this.set({ x, y, width: Math.min(1 - x, width + right * Frame.step), height: Math.min(1 - y, height + down * Frame.step) });
    else this.set({ x: x + right * Frame.step, y: y + down * Frame.step, width, height });
    e.preventDefault();
  }
}
