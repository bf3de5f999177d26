// The SQL console: asks this node, reads the answer as it comes and stops when it has enough.
import { request } from './api.js';
import { AnswerChart } from './charts.js';
import { count } from './say.js';

/** Rows that are shown; the node is not made to find more. */
const MOST_ROWS = 2000;
const MOST_CHARACTERS = 8 << 20;

const by = (id) => document.getElementById(id);

let chart = null;

/** When the colours have changed. */
export const redrawAnswer = () => chart?.again();

export function startConsole() {
  chart = new AnswerChart(by('answer-chart'));
  let running = null;
  by('sql').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      by('console').requestSubmit();
    }
  });
  by('cancel').addEventListener('click', () => running?.abort());
  by('database').addEventListener('change', () => showTables().catch(() => {}));
  by('console').addEventListener('submit', async (event) => {
    event.preventDefault();
    running?.abort();
    const own = new AbortController();
    running = own;
    by('cancel').hidden = false;
    say('asking …');
    try {
      const answer = await ask(by('sql').value, own);
      if (running !== own) return;
      showRows(answer.columns, answer.rows);
      const more = answer.whole ? '' : `, the first ${count(answer.rows.length)} shown (add a LIMIT)`;
      say(`${count(answer.rows.length)} row${answer.rows.length === 1 ? '' : 's'}${more} · ${Math.round(answer.took)} ms · as of ${answer.lsn ?? 'nothing written yet'}${chart.show(answer.columns, answer.rows)}`);
    } catch (error) {
      if (running !== own) return;
      say(own.signal.aborted ? 'stopped' : error.message, !own.signal.aborted);
    } finally {
      if (running === own) {
        running = null;
        by('cancel').hidden = true;
      }
    }
  });
}

function say(text, bad = false) {
  by('answer-says').textContent = text;
  by('answer-says').classList.toggle('bad', bad);
}

async function ask(sql, own) {
  const since = performance.now();
  const answer = await request('/api/v3/query_sql', {
    method: 'POST',
    signal: own.signal,
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ db: by('database').value || 'default', q: sql, format: 'jsonl', consistency: by('consistency').value }),
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const [rows, columns] = [[], new Set()];
  let [rest, read, whole] = ['', 0, true];
  for (;;) {
    const { done, value } = await reader.read();
    const lines = (rest + (value ?? '')).split('\n');
    rest = done ? '' : lines.pop();
    for (const line of lines) {
      if (!line) continue;
      if (rows.length === MOST_ROWS) {
        whole = false;
        break;
      }
      const row = parse(line);
      rows.push(row);
      for (const column of Object.keys(row)) columns.add(column);
    }
    read += value?.length ?? 0;
    if (read > MOST_CHARACTERS) whole = false;
    if (done) break;
    if (!whole) {
      // The node stops looking when nobody listens.
      await reader.cancel();
      break;
    }
  }
  return { rows, columns: [...columns], whole, took: performance.now() - since, lsn: answer.headers.get('x-skein-lsn') };
}

/** Whole numbers that JavaScript would round keep their digits, as text. */
function parse(line) {
  return JSON.parse(line, (key, value, context) =>
    (typeof value === 'number' && Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source ? context.source : value));
}

function showRows(columns, rows) {
  const table = document.createElement('table');
  const head = table.createTHead().insertRow();
  const numeric = columns.map((column) => rows.every((row) => row[column] == null || typeof row[column] === 'number'));
  for (const [index, column] of columns.entries()) {
    const cell = document.createElement('th');
    cell.scope = 'col';
    cell.textContent = column;
    cell.className = numeric[index] ? 'num' : '';
    head.append(cell);
  }
  const body = table.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    for (const [index, column] of columns.entries()) {
      const cell = line.insertCell();
      const value = row[column];
      cell.className = value == null ? 'muted' : numeric[index] ? 'num' : '';
      cell.textContent = value == null ? 'null' : typeof value === 'object' ? JSON.stringify(value) : String(value);
    }
  }
  by('answer').replaceChildren(table);
  by('answer').hidden = columns.length === 0;
}

/** The databases there are now; the choice stays. */
export async function showDatabases() {
  const { databases } = await (await request('/api/v1/databases')).json();
  const names = databases.map((database) => database.name);
  const select = by('database');
  const have = [...select.options].map((option) => option.value);
  if (have.length > 0 && have.join('\n') === (names.length > 0 ? names : ['default']).join('\n')) return showTables();
  const chosen = select.value;
  select.replaceChildren(...(names.length > 0 ? names : ['default']).map((name) => new Option(name, name)));
  if (names.includes(chosen)) select.value = chosen;
  return showTables();
}

/** A button per table, which writes a query. */
async function showTables() {
  const database = by('database').value;
  const place = by('tables');
  let tables = [];
  try {
    const answer = await request(`/api/v1/measurements?database=${encodeURIComponent(database)}`);
    tables = (await answer.json()).measurements.map((one) => one.measurement);
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  if (place.dataset.shown === JSON.stringify([database, tables])) return;
  place.dataset.shown = JSON.stringify([database, tables]);
  place.replaceChildren(...tables.slice(0, 24).map((table) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'chip';
    button.textContent = table;
    button.title = `Write a query of ${table}`;
    button.addEventListener('click', () => {
      by('sql').value = `SELECT * FROM "${table.replaceAll('"', '""')}" ORDER BY time DESC LIMIT 200`;
      by('sql').focus();
    });
    return button;
  }));
  if (tables.length === 0) place.textContent = 'no tables yet: they come into being with the first write';
}
