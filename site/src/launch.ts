// Where a page can be run without installing anything, if `github:` in myst.yml says where the course lies.
import { attributes } from './html.ts';
import type { Page } from './book.ts';

const GITHUB = /^https:\/\/github\.com\/([\w.-]+)\/([\w.-]+?)(?:\.git)?\/?$/;

/** Links to Colab (the notebook of the published book, branch gh-pages) and Binder (the page itself); none without address or code. */
export function launches(page: Pick<Page, 'name' | 'file' | 'github' | 'run'>): string {
  const [, owner, repository] = GITHUB.exec(page.github ?? '') ?? [];
  if (!owner || !page.run?.runs.length) return '';
  const colab = `https://colab.research.google.com/github/${owner}/${repository}/blob/gh-pages/${page.name}.ipynb`;
  const binder = `https://mybinder.org/v2/gh/${owner}/${repository}/main?urlpath=${encodeURIComponent(`lab/tree/${page.file}`)}`;
  return [
    ['Colab', colab],
    ['Binder', binder],
  ]
    .map(([name, href]) => `<a${attributes({ href, rel: 'noopener' })}>Open in ${name}</a>`)
    .join('\n');
}
