// The topology: nodes on an ellipse in the order of their ids, so that nobody moves when the writer does.
import { lag, millis, nameOf, roles, span, throughput } from './say.js';

const SVG = 'http://www.w3.org/2000/svg';
const [WIDTH, HEIGHT, RADIUS] = [640, 380, 34];
/** Bytes per second of a lane that are worth a word: below is what an idle cluster says to itself. */
const WORTH = 5e3;
/** Looks that are closer together are one, and over a longer time nothing is told, in milliseconds. */
const [AGAIN, GAP] = [500, 10e3];
/** With more nodes, only the writer's lines carry their round trip. */
const LABELLED = 5;

function element(name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text != null) made.textContent = text;
  return made;
}

/** What was drawn stays and is changed, so that what moves goes on moving. */
class Layer {
  constructor(svg) {
    this.group = svg.appendChild(element('g'));
    this.drawn = new Map();
  }

  draw(keys, make) {
    for (const [key, part] of this.drawn) {
      if (!keys.includes(key)) {
        part.remove();
        this.drawn.delete(key);
      }
    }
    for (const key of keys) {
      let part = this.drawn.get(key);
      if (!part) {
        part = this.group.appendChild(make());
        this.drawn.set(key, part);
      }
    }
    return (key) => this.drawn.get(key);
  }
}

function places(ids) {
  const [x, y] = [WIDTH / 2, HEIGHT / 2 - 12];
  if (ids.length === 1) return new Map([[ids[0], [x, y]]]);
  const turn = ids.length === 2 ? Math.PI : Math.PI / 2;
  const at = (index) => turn - (2 * Math.PI * index) / ids.length;
  const spread = ids.length === 2 ? 150 : 225;
  return new Map(ids.map((id, index) => [id, [x + spread * Math.cos(at(index)), y - 118 * Math.sin(at(index)) + (ids.length === 3 ? 14 : 0)]]));
}

/** Bytes per second by lane; nothing when that cannot be told: a new link, or a long time without a look. */
function flowOf(last, sent, now) {
  const lanes = Object.entries(sent);
  if (!last || now - last.at > GAP || lanes.some(([lane, bytes]) => bytes < last.sent[lane])) return {};
  const known = lanes.filter(([lane, bytes]) => bytes > (last.sent[lane] ?? bytes));
  return Object.fromEntries(known.map(([lane, bytes]) => [lane, ((bytes - last.sent[lane]) * 1000) / (now - last.at)]));
}

/** Bytes that one end of a link has written since the last look, by lane; nothing of a new link. */
class Flows {
  constructor() {
    this.before = new Map();
  }

  /** What each link carries in bytes per second, by `from to`. */
  look(nodes, now) {
    const seen = new Map();
    const flows = new Map();
    for (const node of nodes) {
      for (const link of node.links) {
        const key = `${node.id} ${link.to}`;
        const [last, sent] = [this.before.get(key), link.sent_bytes ?? {}];
        // What two tabs ask for is one look.
        const again = last && now - last.at < AGAIN;
        const flow = again ? last.flow : flowOf(last, sent, now);
        seen.set(key, again ? last : { at: now, sent, flow });
        flows.set(key, flow);
      }
    }
    this.before = seen;
    return flows;
  }
}

export class Graph {
  constructor(svg) {
    this.svg = svg;
    this.flows = new Flows();
    this.edges = new Layer(svg);
    this.nodes = new Layer(svg);
  }

  show(status, busy, now) {
    const nodes = [...status.nodes].sort((a, b) => (a.id < b.id ? -1 : 1));
    const at = places(nodes.map((node) => node.id));
    this.showEdges(nodes, at, busy, this.flows.look(nodes, now));
    const find = this.nodes.draw(nodes.map((node) => node.id), makeNode);
    for (const node of nodes) showNode(find(node.id), node, at.get(node.id));
    this.svg.setAttribute('aria-label', nodes.map((node) => `${nameOf(node)}: ${roles(node).join(', ')}, ${node.state}, lag ${lag(node).text}`).join('. '));
  }

  showEdges(nodes, at, busy, flows) {
    const pairs = [];
    for (const [index, a] of nodes.entries()) {
      for (const b of nodes.slice(index + 1)) pairs.push([`${a.id} ${b.id}`, a, b]);
    }
    const find = this.edges.draw(pairs.map(([key]) => key), makeEdge);
    for (const [key, a, b] of pairs) showEdge(find(key), a, b, at, busy, nodes.length, flows);
  }
}

function makeEdge() {
  const group = element('g');
  group.append(
    element('line'),
    element('text', { 'text-anchor': 'middle', dy: '.35em' }),
    element('text', { class: 'flow', 'text-anchor': 'middle', dy: '1.6em' }),
    element('title'),
  );
  return group;
}

/** The lanes of one direction in words, the fullest first. */
function laneWords(flow) {
  const lanes = Object.entries(flow ?? {}).sort((one, other) => other[1] - one[1]);
  return lanes.map(([lane, value]) => `${lane} ${throughput(value)}`).join(', ');
}

/** What goes over a line, if it is worth a word: the fullest lane, whichever way. */
function fullest(flows) {
  const lanes = flows.flatMap((flow) => Object.entries(flow ?? {}));
  const [lane, value] = lanes.reduce((best, one) => (one[1] > best[1] ? one : best), ['', 0]);
  return value < WORTH ? '' : `${throughput(value)} ${lane}`;
}

function showEdge(group, a, b, at, busy, nodes, flows) {
  const [line, label, flow, title] = group.children;
  const [[x1, y1], [x2, y2]] = [at.get(a.id), at.get(b.id)];
  const ends = [a.links.find((link) => link.to === b.id), b.links.find((link) => link.to === a.id)].filter(Boolean);
  const rtt = ends.length > 0 ? Math.min(...ends.map((link) => link.rtt_ms)) : null;
  const down = a.state === 'down' || b.state === 'down';
  const fromWriter = !down && (a.is_writer || b.is_writer);
  const kind = down ? 'down' : rtt == null ? 'cut' : fromWriter ? (busy ? 'feed busy' : 'feed') : 'link';
  // From the writer outwards: what moves on the line moves with the records.
  const [fx, fy, tx, ty] = b.is_writer ? [x2, y2, x1, y1] : [x1, y1, x2, y2];
  for (const [name, value] of [['x1', fx], ['y1', fy], ['x2', tx], ['y2', ty]]) line.setAttribute(name, value);
  group.setAttribute('class', `edge ${kind}`);
  // Off the middle, where lines of larger clusters cross.
  const share = nodes > 3 ? 0.36 : 0.5;
  label.setAttribute('x', fx + (tx - fx) * share);
  label.setAttribute('y', fy + (ty - fy) * share);
  const [there, back] = [flows.get(`${a.id} ${b.id}`), flows.get(`${b.id} ${a.id}`)];
  flow.setAttribute('x', label.getAttribute('x'));
  flow.setAttribute('y', label.getAttribute('y'));
  const text = down ? '' : rtt == null ? 'no link' : millis(rtt);
  label.textContent = nodes <= LABELLED || fromWriter || kind === 'cut' ? text : '';
  flow.textContent = (nodes <= 3 || fromWriter) && !down && rtt != null ? fullest([there, back]) : '';
  const lanes = [[a, b, there], [b, a, back]].map(([from, to, sent]) => [`${nameOf(from)} to ${nameOf(to)}`, laneWords(sent)]);
  const carried = down ? '' : lanes.filter(([, words]) => words).map(([way, words]) => `\n${way}: ${words}`).join('');
  title.textContent = `${nameOf(a)} – ${nameOf(b)}: ${down ? 'one of them is down' : rtt == null ? 'both are up, but have no link: is UDP let through?' : `round trip ${millis(rtt)}`}${carried}`;
}

function makeNode() {
  const group = element('g');
  group.append(
    element('rect', { x: -RADIUS, y: -RADIUS, width: 2 * RADIUS, height: 2 * RADIUS }),
    element('text', { class: 'name', 'text-anchor': 'middle', dy: '.35em' }),
    element('text', { class: 'star', 'text-anchor': 'middle', x: 28, y: -24 }, '★'),
    element('text', { class: 'role', 'text-anchor': 'middle', y: RADIUS + 20 }),
    element('text', { class: 'state', 'text-anchor': 'middle', y: RADIUS + 37 }),
    element('title'),
  );
  return group;
}

function showNode(group, node, [x, y]) {
  const [shape, name, star, role, state, title] = group.children;
  const behind = lag(node);
  group.setAttribute('transform', `translate(${x} ${y})`);
  group.setAttribute('class', `node ${node.role} ${node.is_writer ? 'writer' : ''} ${node.state} lag-${behind.level}`);
  // Voters are round, readers are square: colour is never the only sign.
  shape.setAttribute('rx', node.role === 'voter' ? RADIUS : 8);
  const label = nameOf(node);
  name.textContent = label.length > 8 ? `${label.slice(0, 7)}…` : label;
  star.textContent = node.is_leader ? '★' : '';
  role.textContent = node.is_writer ? 'writer' : node.role;
  state.textContent = node.state === 'down'
    ? (node.silent_ms == null ? 'down' : `down ${span(node.silent_ms)}`)
    : node.state === 'up' ? `lag ${behind.text}` : `${node.state}, lag ${behind.text}`;
  title.textContent = `${label} (${node.id}): ${roles(node).join(', ')}, ${node.state}`;
}
