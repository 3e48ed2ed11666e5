-- Version 1. Drawn and explained in store/mod.rs. Steps between versions: migrate.rs; this file is never edited once released.
CREATE TABLE lane(
  number   INTEGER PRIMARY KEY,  -- 1 and up, for ever; 0 is the local lane and has no row
  name     TEXT    NOT NULL UNIQUE,
  acked_id INTEGER NOT NULL,     -- every batch of the lane up to this id is confirmed upstream
  upto     INTEGER NOT NULL,     -- the totals below count the unconfirmed batches up to this id
  batches  INTEGER NOT NULL,
  messages INTEGER NOT NULL,
  bytes    INTEGER NOT NULL
);
CREATE TABLE batch(
  id      INTEGER PRIMARY KEY,   -- lane << 48 | counter
  epoch   INTEGER NOT NULL,
  s       INTEGER NOT NULL,      -- first sequence
  n       INTEGER NOT NULL,      -- sequences
  bytes   INTEGER NOT NULL,      -- what the row counts for in its lane's budget
  made_ms INTEGER NOT NULL,
  reason  TEXT,                  -- set: these sequences were given up, and this is why
  body    BLOB                   -- record batch v2
);
CREATE TABLE refs(
  batch INTEGER PRIMARY KEY,
  n     INTEGER NOT NULL         -- queue rows that need the batch; no row = none
);
CREATE TABLE quarantine(
  id      INTEGER PRIMARY KEY,
  lane    INTEGER NOT NULL,
  epoch   INTEGER NOT NULL,
  s       INTEGER NOT NULL,
  n       INTEGER NOT NULL,
  reason  TEXT    NOT NULL,
  made_ms INTEGER NOT NULL,
  body    BLOB    NOT NULL
);
CREATE TABLE session(
  id              INTEGER PRIMARY KEY,
  client_id       TEXT    NOT NULL,
  principal       TEXT,
  expiry_s        INTEGER NOT NULL,
  disconnected_ms INTEGER,
  will_delay_s    INTEGER,
  will            BLOB,          -- record batch v2 with one record
  next_seq        INTEGER NOT NULL
);
CREATE TABLE subscription(
  session         INTEGER NOT NULL,
  filter          TEXT    NOT NULL,
  options         INTEGER NOT NULL, -- bits 0-1 QoS, 2 no local, 3 retain as published, 4-5 retain handling
  subscription_id INTEGER,
  PRIMARY KEY(session, filter)
) WITHOUT ROWID;
CREATE TABLE queue(
  session   INTEGER NOT NULL,
  seq       INTEGER NOT NULL,
  batch     INTEGER NOT NULL,
  place     INTEGER NOT NULL,    -- index in the batch
  flags     INTEGER NOT NULL,    -- bits 0-1 QoS, 2 retain, 3 released
  packet_id INTEGER,
  subs      BLOB,                -- subscription ids, u32 little-endian
  PRIMARY KEY(session, seq)
) WITHOUT ROWID;
CREATE TABLE received(
  session   INTEGER NOT NULL,
  packet_id INTEGER NOT NULL,
  PRIMARY KEY(session, packet_id)
) WITHOUT ROWID;
CREATE TABLE retained(
  topic TEXT PRIMARY KEY,
  body  BLOB NOT NULL            -- record batch v2 with one record
);
