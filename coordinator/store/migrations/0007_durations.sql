ALTER TABLE jobs RENAME COLUMN deadline TO driven;
UPDATE jobs SET driven = 0;
ALTER TABLE boots DROP COLUMN expires;
