-- Views that users of the console have saved: the part of an address that says what a list shows.
SET LOCAL lock_timeout = '2s';

CREATE TABLE saved_views (
    id uuid PRIMARY KEY,
    organization_id text NOT NULL,
    owner text,
    screen text NOT NULL,
    name text NOT NULL,
    query text NOT NULL,
    created_by text NOT NULL,
    updated_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- Serves the list of the views that a caller sees, and keeps names apart.
CREATE UNIQUE INDEX saved_views_by_name ON saved_views (organization_id, (coalesce(owner, '')), screen, name);

COMMENT ON TABLE saved_views IS 'Views of lists that callers have saved. They are kept until they are deleted.';
COMMENT ON COLUMN saved_views.id IS 'Id of the view.';
COMMENT ON COLUMN saved_views.organization_id IS 'Organisation of the view.';
COMMENT ON COLUMN saved_views.owner IS 'Subject that the view belongs to, and that alone sees it. Null: the whole organisation sees it.';
COMMENT ON COLUMN saved_views.screen IS 'List that it is a view of, such as runs.';
COMMENT ON COLUMN saved_views.name IS 'Name for people.';
COMMENT ON COLUMN saved_views.query IS 'Filters, columns and order, as in the query part of an address.';
COMMENT ON COLUMN saved_views.created_by IS 'Subject that created it.';
COMMENT ON COLUMN saved_views.updated_by IS 'Subject that changed it last.';
COMMENT ON COLUMN saved_views.created_at IS 'When it was created.';
COMMENT ON COLUMN saved_views.updated_at IS 'When it was changed last.';
