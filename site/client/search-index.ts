// Loaded when the reader first goes to the search field, after search-entries.js.
import { makeSearch } from './query.ts';

window.searchBook = makeSearch(window.BOOK ?? []);
