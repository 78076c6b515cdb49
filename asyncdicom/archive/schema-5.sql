-- The index of an archive, version 5: when modalities usually send, so that one that has become silent is noticed.

-- Until when somebody listened: what did not arrive while nobody did says nothing. One row.
CREATE TABLE listened (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    until REAL NOT NULL,
    -- The hour that was under way, and how many seconds of it somebody listened.
    hour_began REAL NOT NULL,
    hour_seconds REAL NOT NULL
);

-- The silence of each modality that is expected to send.
CREATE TABLE silences (
    modality TEXT PRIMARY KEY,
    -- What its AE title, host and port were: another device under the same name begins anew.
    address TEXT NOT NULL,
    -- When it was last heard; NULL for never.
    heard_at REAL,
    -- Of the silence that is tolerated, how much had come together, and when.
    share REAL NOT NULL,
    weighed_at REAL NOT NULL,
    quiet_since REAL,
    hours_learnt INTEGER NOT NULL
) WITHOUT ROWID;

-- For each hour of the local week, how often somebody listened, and how often something came; what is older counts less.
CREATE TABLE usual_arrivals (
    modality TEXT NOT NULL,
    -- 0 for Monday after midnight, to 167.
    hour INTEGER NOT NULL,
    listened REAL NOT NULL,
    heard REAL NOT NULL,
    PRIMARY KEY (modality, hour)
) WITHOUT ROWID;

-- What was last told of each modality, so that a restart neither repeats nor forgets a change.
CREATE TABLE told_silences (
    modality TEXT PRIMARY KEY,
    is_quiet INTEGER NOT NULL
) WITHOUT ROWID;
