// The book's behaviour. One classic script without fetch, so that pages also work when opened from the disk. All of it is an addition:
// without it the text, the first frame of each widget and every answer are still there.
import { contents } from './contents.ts';
import { copy } from './copy.ts';
import { folds } from './folds.ts';
import { notes } from './notes.ts';
import { predict } from './predict.ts';
import { quiz } from './quiz.ts';
import { search } from './search.ts';
import { tabs } from './tabs.ts';
import { theme } from './theme.ts';

theme();
contents();
search();
notes();
copy();
predict();
quiz();
tabs();
folds();
