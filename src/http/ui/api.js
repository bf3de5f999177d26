// Requests of the page: the token of whoever looks at it, and the stream of events.
// A token lies in sessionStorage: gone with the tab, never in a URL, never in a cookie.

const TOKEN = 'skein.token';
const ADMIN = 'skein.admin';
/** Characters of one event; a longer one is no event of ours. */
const LONGEST_EVENT = 8 << 20;

export const hasToken = () => Boolean(sessionStorage.getItem(TOKEN) || sessionStorage.getItem(ADMIN));

export function forgetTokens() {
  sessionStorage.removeItem(TOKEN);
  sessionStorage.removeItem(ADMIN);
}

/** An answer that is not the one asked for, in the node's own words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function send(path, options, token) {
  const headers = { ...options.headers };
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(path, { ...options, headers, credentials: 'omit', cache: 'no-store', redirect: 'error' });
  if (answer.ok) return answer;
  let message = `the node answered ${answer.status}`;
  try {
    message = (await answer.json()).message ?? message;
  } catch { /* no words of its own */ }
  throw new Refused(answer.status, message);
}

/** A request with the token there is; asks for one when the node wants one. */
export async function request(path, options = {}) {
  for (;;) {
    const own = sessionStorage.getItem(TOKEN);
    try {
      return await send(path, options, own ?? sessionStorage.getItem(ADMIN));
    } catch (error) {
      if (error.status !== 401) throw error;
      // Then it was the admin token, if any, that did not do.
      if (!own) sessionStorage.removeItem(ADMIN);
      await askFor(TOKEN, own, 'This node asks for an API token',
        'Reading and writing from other machines needs one: any API token of the cluster will do.');
    }
  }
}

/** A request that changes members or tokens: needs the admin token everywhere. */
export async function adminRequest(path, options) {
  for (;;) {
    const token = sessionStorage.getItem(ADMIN);
    try {
      if (!token) throw new Refused(401, '');
      return await send(path, options, token);
    } catch (error) {
      if (error.status !== 401 && error.status !== 403) throw error;
      if (error.status === 403 && !/admin/.test(error.message)) throw error;
      await askFor(ADMIN, token, 'This needs an admin token',
        'It changes who may be in the cluster. The first admin token lies in the file admin.token, in the data '
        + 'directory of the node that made the cluster.');
    }
  }
}

let asking = null;

/** Asks once, however many requests wait; `refused` is the token that did not do. */
async function askFor(kind, refused, title, why) {
  if (sessionStorage.getItem(kind) !== refused) return;
  sessionStorage.removeItem(kind);
  asking ??= ask(title, refused ? `The token was not accepted. ${why}` : why)
    .then((token) => sessionStorage.setItem(kind, token))
    .finally(() => { asking = null; });
  await asking;
}

function ask(title, why) {
  const dialog = document.getElementById('ask');
  const field = document.getElementById('ask-token');
  document.getElementById('ask-title').textContent = title;
  document.getElementById('ask-why').textContent = why;
  field.value = '';
  dialog.showModal();
  field.focus();
  return new Promise((resolve, reject) => {
    const ended = new AbortController();
    const on = (target, event, then) => target.addEventListener(event, then, { signal: ended.signal });
    on(document.getElementById('ask-form'), 'submit', (event) => {
      event.preventDefault();
      const token = field.value.trim();
      if (!token) return;
      resolve(token);
      dialog.close();
    });
    on(document.getElementById('ask-cancel'), 'click', () => dialog.close());
    on(dialog, 'close', () => {
      field.value = '';
      ended.abort();
      reject(new Refused(401, 'No token was given. Load the page again to be asked for one.'));
    });
  });
}

/**
 * Follows a stream of server-sent events until `signal` says to stop: `tell(name, data)` for each, `lost(error)`
 * whenever there is none. By fetch, for an EventSource sends no token but in its URL.
 */
export async function follow(path, signal, tell, lost) {
  let pause = 500;
  while (!signal.aborted) {
    try {
      const answer = await request(path, { signal, headers: { accept: 'text/event-stream' } });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = '';
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        pause = 500;
        text += value;
        const events = text.split('\n\n');
        text = events.pop();
        if (text.length > LONGEST_EVENT) throw new Error('an event has no end');
        for (const event of events) dispatch(event, tell);
      }
      lost(null);
    } catch (error) {
      if (signal.aborted) return;
      lost(error);
      // Whoever gave no token is not asked again and again.
      if (error.status === 401) return;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, 5000);
  }
}

function dispatch(event, tell) {
  const field = (name) => event.split('\n').find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
  const data = field('data');
  if (data) tell(field('event') ?? 'message', JSON.parse(data));
}
