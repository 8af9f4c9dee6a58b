CREATE TABLE webhooks (
  name TEXT PRIMARY KEY,
  secret BLOB NOT NULL,
  delivered INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  next_try INTEGER NOT NULL,
  last_error TEXT NOT NULL,
  body BLOB NOT NULL
);
CREATE TABLE dead_letters (
  webhook TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  tries INTEGER NOT NULL,
  error TEXT NOT NULL,
  given_up INTEGER NOT NULL,
  again INTEGER NOT NULL,
  event BLOB NOT NULL,
  PRIMARY KEY (webhook, sequence)
);
CREATE TABLE archive_segments (
  first INTEGER PRIMARY KEY,
  last INTEGER NOT NULL,
  events INTEGER NOT NULL,
  sha256 BLOB NOT NULL,
  chain BLOB NOT NULL,
  newest INTEGER NOT NULL,
  created INTEGER NOT NULL,
  dropped INTEGER NOT NULL
);
CREATE TABLE archive_copies (
  first INTEGER NOT NULL,
  node TEXT NOT NULL,
  PRIMARY KEY (first, node)
);
