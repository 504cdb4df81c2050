// The search field: "/" goes there, arrows walk the results, Enter opens one, Escape leaves. Results replace the contents.
import { all, one } from './dom.ts';
import type { Entry } from '../src/search.ts';
import type { Found, Hit } from './query.ts';

declare global {
  interface Window {
    BOOK?: Entry[];
    searchBook?: (query: string) => Found;
  }
}

const load = (src: string): Promise<void> =>
  new Promise((done, fail) => {
    const script = Object.assign(document.createElement('script'), {
      src,
      onload: () => done(),
      onerror: () => {
        script.remove();
        fail(new Error(`${src} did not load`));
      },
    });
    document.head.append(script);
  });

/** The index is fetched once, when the search is first wanted; what failed is tried again the next time. */
let loading: Promise<boolean> | undefined;
const ready = (): Promise<boolean> =>
  (loading ??= load('search-entries.js')
    .then(() => load('search.js'))
    .then(
      () => true,
      () => {
        loading = undefined;
        return false;
      },
    ));

const make = <K extends keyof HTMLElementTagNameMap>(tag: K, ...inside: (Node | string)[]): HTMLElementTagNameMap[K] => {
  const element = document.createElement(tag);
  element.append(...inside);
  return element;
};

function hitItem({ entry, snippet: [before, match, after] }: Hit): HTMLLIElement {
  const link = make('a', entry.title, make('small', entry.where));
  link.href = entry.href;
  if (match) link.append(make('small', before, make('mark', match), after));
  return make('li', link);
}

function notLoaded(again: () => void): HTMLLIElement {
  const button = make('button', 'Try again');
  button.type = 'button';
  button.className = 'quiet';
  button.onclick = again;
  const item = make('li', make('p', 'The search could not be loaded. Look at your connection, then try again.'), button);
  item.className = 'none';
  return item;
}

function nothing(query: string, instead: string[], ask: (query: string) => void): HTMLLIElement {
  const item = make('li', make('p', `Nothing found for “${query}”.`));
  item.className = 'none';
  if (instead.length) {
    item.append(
      make('p', 'Did you mean'),
      ...instead.map((words) => {
        const button = make('button', words);
        button.type = 'button';
        button.className = 'quiet';
        button.onclick = () => ask(words);
        return button;
      }),
    );
  } else {
    item.append(
      make(
        'p',
        'The search reads the text, the code and the captions of every part that is written. Fewer words, or the beginning of one, find more.',
      ),
    );
  }
  return item;
}

export function search(): void {
  const form = one<HTMLFormElement>('form.search')!;
  const field = one<HTMLInputElement>('input', form)!;
  const list = one<HTMLUListElement>('.hits', form)!;
  const status = one('[role="status"]', form)!;

  const draw = async (): Promise<void> => {
    const query = field.value.trim();
    list.hidden = !query;
    if (!query) {
      list.replaceChildren();
      status.textContent = '';
      return;
    }
    const loaded = await ready();
    if (query !== field.value.trim()) return; // typed on meanwhile
    if (!loaded) {
      list.replaceChildren(
        notLoaded(() => {
          field.focus();
          void draw();
        }),
      );
      status.textContent = 'The search could not be loaded';
      return;
    }
    const { hits, all: every, instead } = window.searchBook!(query);
    const items = hits.map(hitItem);
    if (!hits.length)
      items.push(
        nothing(query, instead, (words) => {
          field.value = words;
          void draw();
          field.focus();
        }),
      );
    else if (!every) items.unshift(make('li', make('small', `No section has all of “${query}”. With some of the words:`)));
    list.replaceChildren(...items);
    status.textContent = hits.length ? `${hits.length} found` : 'Nothing found';
  };

  field.onfocus = () => {
    void ready();
  };
  field.oninput = () => {
    void draw();
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    one<HTMLAnchorElement>('a', list)?.click();
  };
  list.addEventListener('click', (event) => {
    if ((event.target as Element).closest('a')) {
      document.body.classList.remove('open-nav');
      field.value = '';
      void draw();
    }
  });
  addEventListener('keydown', (event) => {
    const target = event.target as Element;
    if (event.key === '/' && !event.ctrlKey && !event.metaKey && !target.closest('input, select, textarea')) {
      event.preventDefault();
      if (getComputedStyle(one('.menu')!).display !== 'none') document.body.classList.add('open-nav');
      field.focus();
    }
    if (!target.closest('.search')) return;
    if (event.key === 'Escape') {
      field.value = '';
      void draw();
      field.blur();
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const stops: HTMLElement[] = [field, ...all('a', list)];
    const at = stops.indexOf(document.activeElement as HTMLElement);
    if (step && at >= 0) {
      event.preventDefault();
      stops.at((at + step) % stops.length)?.focus();
    }
  });
}
