-- The functions stay: they do the same as those before, which only a superuser can create.
SELECT;
