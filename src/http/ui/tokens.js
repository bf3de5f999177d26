// Join tokens: makes one and shows the line to paste on the next machine.
import { adminRequest } from './api.js';

const by = (id) => document.getElementById(id);

/** What the seed of the line across networks is taken from: the last status. */
let status = null;
export const knowStatus = (now) => { status = now; };

export function startTokens() {
  by('join').addEventListener('submit', async (event) => {
    event.preventDefault();
    const role = by('join-role').value;
    const wanted = { role, ttl: by('join-ttl').value, uses: Number(by('join-uses').value) };
    by('join-lines').hidden = true;
    say('making a token …');
    try {
      const answer = await adminRequest('/api/v1/tokens', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(wanted),
      });
      const { token } = await answer.json();
      const line = `skein start${role === 'voter' ? '' : ` --role ${role}`} --join ${token}`;
      by('line-lan').value = line;
      by('line-wan').value = `${line} --seed ${seed()}`;
      by('join-lines').hidden = false;
      const nodes = wanted.uses === 1 ? 'one node' : `${wanted.uses} nodes`;
      say(`For ${nodes} as ${role}, good for ${by('join-ttl').selectedOptions[0].text}. It is shown this once.`);
    } catch (error) {
      say(error.message, true);
    }
  });
  for (const button of document.querySelectorAll('button.copy')) {
    button.addEventListener('click', () => copy(by(button.dataset.of), button));
  }
}

/** Where the mesh of a node listens that is up: the one that answers, if it can be reached from elsewhere. */
function seed() {
  const up = status?.nodes.filter((node) => node.state !== 'down' && node.mesh_addr) ?? [];
  const away = (node) => !/^(127\.|\[::1\])/.test(node.mesh_addr);
  const own = up.find((node) => node.id === status.node_id);
  return (own && away(own) ? own : up.find(away) ?? own)?.mesh_addr ?? 'HOST:7400';
}

/** The clipboard is there on loopback and over TLS only; elsewhere the line is selected. */
async function copy(field, button) {
  field.select();
  try {
    await navigator.clipboard.writeText(field.value);
    button.textContent = 'Copied';
  } catch {
    button.textContent = 'Press Ctrl C';
  }
  setTimeout(() => { button.textContent = 'Copy'; }, 2000);
}

function say(text, bad = false) {
  by('join-says').textContent = text;
  by('join-says').classList.toggle('bad', bad);
}
