-- Common templates: every team finds them by their names alone.

-- True if operators of the platform made the public template common.
ALTER TABLE templates ADD common boolean NOT NULL DEFAULT false;
-- A name stands for one common template.
CREATE UNIQUE INDEX common_templates ON templates (name) WHERE common;
