-- The index of an archive, version 3: to which targets the events of the outbox are still to be delivered.

-- Which index this is. Ids of the outbox begin at 1 in every one; together they name an event among all.
CREATE TABLE identity (
    id TEXT NOT NULL
);
INSERT INTO identity (id) VALUES (lower(hex(randomblob(12))));

CREATE TABLE event_targets (
    name TEXT PRIMARY KEY,
    -- Events up to this id have become deliveries, or happened before anybody had this name.
    position INTEGER NOT NULL
) WITHOUT ROWID;

-- One row for each event and target that still waits for it; there is none any more when it has it.
CREATE TABLE deliveries (
    target TEXT NOT NULL,
    event_id INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    -- When the next attempt is made; 0 for at once.
    due_at REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (target, event_id)
) WITHOUT ROWID;
CREATE INDEX deliveries_by_event ON deliveries (event_id);

-- What was last told of each modality, so that a restart neither repeats nor forgets a change.
CREATE TABLE told_conditions (
    modality TEXT PRIMARY KEY,
    is_up INTEGER NOT NULL
) WITHOUT ROWID;
