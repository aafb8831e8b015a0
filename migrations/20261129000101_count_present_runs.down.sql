-- Nothing to undo: the numbers go with their tables.
SELECT;
