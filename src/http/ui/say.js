// Words and numbers: what the page says of the cluster, without touching the page.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat('en', { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });

export const DASH = '–';

export const count = (value) => (value == null ? DASH : whole.format(value));
export const short = (value) => (value == null ? DASH : value < 1000 ? whole.format(value) : compact.format(value));
export const rate = (value) => (value == null ? DASH : value > 0 && value < 10 ? tenth.format(value) : whole.format(value));
export const millis = (value) => {
  if (value == null) return DASH;
  if (value < 10) return `${tenth.format(value)} ms`;
  return value < 1000 ? `${whole.format(value)} ms` : span(value);
};

/** Bytes per second. */
export function throughput(value) {
  if (value == null) return DASH;
  const [unit, size] = value < 1e3 ? ['B/s', 1] : value < 1e6 ? ['kB/s', 1e3] : ['MB/s', 1e6];
  return `${rate(value / size)} ${unit}`;
}

/** A length of time, in its two largest units at most. */
export function span(ms) {
  if (ms == null) return DASH;
  const seconds = Math.max(0, Math.round(ms / 1000));
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days > 0) return `${days} d ${hours} h`;
  if (hours > 0) return `${hours} h ${minutes} min`;
  return minutes > 0 ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
}

export const nameOf = (node) => node?.name || node?.id?.slice(0, 6) || 'nobody';

/** How far behind a node is, in words and as one of ok, warn, bad. */
export function lag(node) {
  if (node.state === 'down') {
    return { level: 'bad', text: node.silent_ms == null ? 'not heard' : `silent ${span(node.silent_ms)}` };
  }
  if (node.role === 'gateway') {
    const age = node.view_age_ms;
    return age == null ? { level: 'bad', text: 'no view' } : { level: age < 2000 ? 'ok' : 'bad', text: `view ${millis(age)}` };
  }
  const records = node.lag_records ?? 0;
  if (node.lag_ms == null) {
    const text = node.lag_records == null ? 'unknown' : records === 0 ? 'unconfirmed' : `${short(records)} records`;
    return { level: records > 10000 ? 'bad' : 'warn', text };
  }
  const level = node.lag_ms < 1000 ? 'ok' : node.lag_ms < 10000 ? 'warn' : 'bad';
  return { level, text: millis(Math.round(node.lag_ms)) };
}

export function roles(node) {
  const is = [];
  if (node.is_writer) is.push('writer');
  if (node.is_leader) is.push('leader');
  is.push(node.role === node.wants ? node.role : `${node.role}, wants ${node.wants}`);
  return is;
}

const list = (names) => (names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`);
const silence = (node) => (node.silent_ms == null ? 'not heard since this node started' : `last heard ${span(node.silent_ms)} ago`);
// The page says these itself, with names.
const SAID = /^(One voter|Two voters|\d+ of \d+ voters do not answer)/;

/** How the cluster is: a level (ok, warn, bad), a sentence, and what else is to say or to do. */
export function verdict(status) {
  const voters = status.nodes.filter((node) => node.role === 'voter');
  const down = status.nodes.filter((node) => node.state === 'down');
  const up = voters.filter((node) => node.state !== 'down').length;
  const need = Math.floor(voters.length / 2) + 1;
  const writer = status.nodes.find((node) => node.is_writer);
  const more = (status.warnings ?? []).filter((text) => !SAID.test(text));
  const names = list(down.map(nameOf));
  const gone = down.length === 1 ? `${names} is down: ${silence(down[0])}.` : `${names} are down.`;
  if (up < need) {
    const missing = need - up === 1 ? 'one more' : `${need - up} more`;
    more.unshift(`Start ${missing} of ${names} again: nothing that was acknowledged is lost. If they are gone for good, see “skein recover”.`);
    return { level: 'bad', head: `Writes have stopped: ${up} of ${voters.length} voters ${up === 1 ? 'answers' : 'answer'}, ${need} are needed.`, more };
  }
  if (!writer || writer.state === 'down') {
    more.unshift(`Requests wait at the nodes meanwhile; this takes about a second.${down.length ? ` ${gone}` : ''}`);
    return { level: 'warn', head: writer ? `${nameOf(writer)}, the writer, is down. Another one is being named.` : 'A writer is being named.', more };
  }
  const margin = up - need;
  if (down.length > 0) {
    const goOn = `Writes go on with ${up} of ${voters.length} voters.`;
    more.unshift(margin === 0 && voters.some((node) => node.state === 'down')
      ? `If one more voter stops, writes stop. Start ${names} again, or take it out (skein node remove) and add another.`
      : `Start ${names} again, or take it out: skein node remove ${nameOf(down[0])}.`);
    return { level: 'warn', head: `${gone} ${goOn}`, more };
  }
  const joining = status.nodes.filter((node) => node.state === 'joining');
  if (joining.length > 0) more.unshift(`${list(joining.map(nameOf))} ${joining.length === 1 ? 'is' : 'are'} still catching up.`);
  if (voters.length === 1) {
    more.unshift('Add two more below, and one may fail without stopping anything.');
    return { level: more.length > 1 ? 'warn' : 'ok', head: 'One node, and it works. Its data has no second copy.', more };
  }
  if (margin === 0) {
    more.unshift('Add one more voter below, and one may fail without stopping writes.');
    return { level: 'warn', head: `${status.nodes.length === 2 ? 'Both' : `All ${status.nodes.length}`} nodes are up, but losing one voter stops writes.`, more };
  }
  const spare = margin === 1 ? 'One voter' : `${margin} voters`;
  return {
    level: more.length > 0 && more.length > (joining.length ? 1 : 0) ? 'warn' : 'ok',
    head: `All ${status.nodes.length} nodes are up. ${spare} may fail without stopping writes.`,
    more,
  };
}

export const WHY = {
  unknown: 'not noted',
  first: 'first writer',
  silent: 'the one before was silent',
  restarted: 'the one before restarted',
  not_in_office: 'the one before did not begin',
  promised_above: 'the one before could not commit',
  handed_over: 'handed over',
  disk: 'disk full or slow',
  not_voter: 'no voter any more',
  recovered: 'cluster recovered',
};
