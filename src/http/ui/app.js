// The page: follows the cluster's events and shows what they say.
import { follow, forgetTokens, hasToken } from './api.js';
import { RateChart } from './charts.js';
import { redrawAnswer, showDatabases, startConsole } from './console.js';
import { Graph } from './graph.js';
import { DASH, WHY, count, lag, millis, nameOf, rate, roles, short, span, verdict } from './say.js';
import { knowStatus, startTokens } from './tokens.js';

/** Points of the charts: five minutes. */
const KEPT = 300;
/** Nothing heard for so long is said. */
const STALE = 4000;
const THEMES = ['auto', 'light', 'dark'];

const by = (id) => document.getElementById(id);
const ingest = new RateChart(by('ingest'), 'points per second');
const queries = new RateChart(by('queries'), 'queries per second');
const graph = new Graph(by('graph'));

let recent = [];
let before = null;
let heardAt = 0;
let trouble = null;

// ---- theme ----

function showTheme(theme) {
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  by('theme').textContent = `Theme: ${theme}`;
  redraw();
}

function redraw() {
  drawRates();
  redrawAnswer();
}

const storedTheme = () => (THEMES.includes(localStorage.getItem('skein.theme')) ? localStorage.getItem('skein.theme') : 'auto');

function startTheme() {
  showTheme(storedTheme());
  by('theme').addEventListener('click', () => {
    const next = THEMES[(THEMES.indexOf(storedTheme()) + 1) % THEMES.length];
    localStorage.setItem('skein.theme', next);
    showTheme(next);
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
}

// ---- what comes ----

function tell(name, data) {
  heardAt = Date.now();
  trouble = null;
  if (name === 'recent') {
    recent = data;
    return;
  }
  recent = [...recent.filter((one) => one.at_ms < data.at_ms), data.rates].slice(-KEPT);
  knowStatus(data.status);
  show(data);
  showLive();
}

function show({ at_ms: at, status, rates }) {
  const said = verdict(status);
  setText('cluster-name', status.cluster_name);
  document.title = `${said.level === 'ok' ? '' : '⚠ '}${status.cluster_name || 'Skein'}`;
  showVerdict(said);
  graph.show(status, rates.points > 0, at);
  showFacts(status, rates, at);
  drawRates();
  setText('ingest-now', `${rate(rates.points)} points/s`);
  setText('queries-now', `${rate(rates.queries)} queries/s`);
  showNodes(status, at);
  showTerms(status, at);
  by('token-button').hidden = !hasToken();
  before = { at, status };
}

/** Changed only when it says something else: screen readers read every change. */
function setText(id, text) {
  if (by(id).textContent !== text) by(id).textContent = text;
}

function showVerdict({ level, head, more }) {
  by('verdict').dataset.level = level;
  setText('verdict-head', head);
  const list = by('verdict-more');
  const lines = [...new Set(more)];
  if ([...list.children].map((line) => line.textContent).join('\n') === lines.join('\n')) return;
  list.replaceChildren(...lines.map((text) => {
    const line = document.createElement('li');
    line.textContent = text;
    return line;
  }));
}

function drawRates() {
  ingest.show(recent.map((one) => [one.at_ms, one.points]));
  queries.show(recent.map((one) => [one.at_ms, one.queries]));
}

function showFacts(status, rates, at) {
  const node = (id) => status.nodes.find((one) => one.id === id);
  const since = status.terms?.at(-1)?.at_ms;
  const certificates = status.nodes.map((one) => one.cert_days_left).filter((days) => days != null);
  const facts = [
    ['Writer', status.writer ? nameOf(node(status.writer)) : 'none'],
    ['In office', since ? span(at - since) : DASH],
    ['Raft leader', status.leader ? nameOf(node(status.leader)) : 'none'],
    ['Epoch', count(status.epoch)],
    ['Committed up to', status.commit ?? DASH],
    ['Records/s', rate(rates.records)],
    ['Next certificate to end', certificates.length > 0 ? `${Math.min(...certificates)} days` : DASH],
    ['This node', nameOf(node(status.node_id))],
    ['Cluster id', status.cluster_id.slice(0, 12)],
  ];
  if (status.generation > 0) facts.push(['Recovered', `${status.generation} times`]);
  const list = by('facts');
  if (list.children.length !== facts.length * 2) {
    list.replaceChildren(...facts.flatMap(([name]) => {
      const term = document.createElement('dt');
      term.textContent = name;
      return [term, document.createElement('dd')];
    }));
  }
  for (const [index, [, value]] of facts.entries()) list.children[index * 2 + 1].textContent = value;
}

function pointsPerSecond(node, at) {
  const last = before?.status.nodes.find((one) => one.id === node.id);
  if (node.points == null || last?.points == null || at <= before.at) return null;
  return (Math.max(0, node.points - last.points) * 1000) / (at - before.at);
}

function showNodes(status, at) {
  const rows = status.nodes.map((node) => {
    const behind = lag(node);
    const days = node.cert_days_left;
    const clock = node.clock_skew_ms;
    return [
      [nameOf(node), `node ${node.id === status.node_id ? 'own' : ''}`, node.id],
      [roles(node).join(' · ')],
      [node.state, `state ${node.state}`],
      [behind.text, `num ${behind.level}`],
      [node.state === 'down' ? DASH : millis(node.rtt_ms), 'num'],
      [rate(pointsPerSecond(node, at)), 'num'],
      [node.applied ?? DASH, 'num opt'],
      [days == null ? DASH : `${days} d`, `num ${days != null && days < 7 ? 'bad' : ''}`],
      [clock == null ? DASH : `${clock > 0 ? '+' : ''}${short(clock)} ms`, `num opt ${Math.abs(clock ?? 0) > 1000 ? 'bad' : ''}`],
      [node.http_addr ?? DASH, 'opt'],
      [node.version ?? DASH, 'opt'],
    ];
  });
  fill(by('nodes').tBodies[0], rows);
}

function showTerms(status, at) {
  const terms = status.terms ?? [];
  const rows = terms.map((term, index) => {
    const until = index + 1 < terms.length ? terms[index + 1].at_ms : at;
    const since = term.at_ms == null ? null : new Date(term.at_ms);
    return [
      [count(term.epoch), 'num'],
      [nameOf(status.nodes.find((node) => node.id === term.node) ?? { id: term.node })],
      [since ? since.toLocaleString(undefined, { dateStyle: 'short', timeStyle: 'medium' }) : DASH, '', since?.toISOString()],
      [since && until ? span(until - term.at_ms) : DASH, 'num'],
      [WHY[term.why] ?? term.why],
    ];
  });
  fill(by('terms').tBodies[0], rows.reverse());
}

/** Rows of [text, class, title] into a table body, changing only what differs. */
function fill(body, rows) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  for (const [at, cells] of rows.entries()) {
    const row = body.rows[at] ?? body.insertRow();
    for (const [index, [text, kind = '', title = '']] of cells.entries()) {
      const cell = row.cells[index] ?? row.insertCell();
      if (cell.textContent !== text) cell.textContent = text;
      if (cell.className !== kind) cell.className = kind;
      if (cell.title !== (title ?? '')) cell.title = title ?? '';
    }
  }
}

// ---- whether anything comes ----

function showLive() {
  const age = Date.now() - heardAt;
  const state = heardAt === 0 ? 'waiting' : age > STALE ? 'lost' : 'live';
  by('live').dataset.state = state;
  document.body.classList.toggle('stale', state === 'lost');
  setText('live-text', { waiting: 'connecting', lost: `nothing heard for ${span(age)}`, live: 'live' }[state]);
  if (state === 'lost' || (state === 'waiting' && trouble)) {
    const refused = trouble?.status === 401;
    const why = trouble?.status ? trouble.message : 'Is it running? Another node shows the same cluster. Trying again.';
    const head = refused ? 'This node asks for an API token.' : state === 'lost' ? 'This node does not answer any more.' : 'This node does not answer.';
    showVerdict({ level: 'bad', head, more: [why] });
  }
}

/** A page that nobody looks at asks nothing. */
function watch() {
  let own = null;
  const turn = () => {
    if (document.hidden) {
      own?.abort();
      own = null;
      return;
    }
    if (own) return;
    own = new AbortController();
    follow('/api/v1/cluster/events', own.signal, tell, (error) => { trouble = error; });
    showDatabases().catch(() => {});
  };
  document.addEventListener('visibilitychange', turn);
  turn();
}

startTheme();
startConsole();
startTokens();
by('token-button').addEventListener('click', () => {
  forgetTokens();
  location.reload();
});
watch();
setInterval(showLive, 500);
setInterval(() => { if (!document.hidden && heardAt > 0) showDatabases().catch(() => {}); }, 5000);
