BEGIN TRANSACTION;
CREATE TABLE plumbline_records (
	id INTEGER NOT NULL,
	run TEXT NOT NULL,
	"case" TEXT NOT NULL,
	topic TEXT NOT NULL,
	variant TEXT NOT NULL,
	engine TEXT NOT NULL,
	topology TEXT NOT NULL,
	workload TEXT NOT NULL,
	dtype TEXT NOT NULL,
	device TEXT NOT NULL,
	measure TEXT NOT NULL,
	quantity TEXT NOT NULL,
	value DOUBLE,
	unit TEXT NOT NULL,
	law DOUBLE,
	bound DOUBLE,
	verdict TEXT NOT NULL,
	reason TEXT NOT NULL,
	direction TEXT NOT NULL,
	detail JSON NOT NULL,
	recorded TEXT NOT NULL,
	PRIMARY KEY (id),
	FOREIGN KEY(run) REFERENCES plumbline_runs (run)
);
INSERT INTO "plumbline_records" VALUES(1,'20261129-171420-1f1745','zero3-deepspeed-dp2-fp32','zero','zero3','deepspeed','dp2','tiny','fp32','cpu','memory','peak',3.00000000000000044408e-01,'B',1.0e+300,4.94065645841247e-324,'pass','30% below the law','lower','{"series": [1, 2.5, null], "kind": {"real": true}, "big": 4611686018427387904}','2026-11-29T17:14:21.016841+00:00');
INSERT INTO "plumbline_records" VALUES(2,'20261129-171420-1f1745','zero3-deepspeed-dp2-fp32','zero','zero3','deepspeed','dp2','tiny','fp32','cpu','memory','other',3.00000000000000044408e-01,'B',1.0e+300,4.94065645841247e-324,'pass','30% below the law','lower','{"series": [1, 2.5, null], "kind": {"real": true}, "big": 4611686018427387904}','2026-11-29T17:14:21.016841+00:00');
INSERT INTO "plumbline_records" VALUES(3,'20261129-171420-1f1745','zero3-deepspeed-dp2-fp32','zero','zero3','deepspeed','dp2','tiny','fp32','cpu','memory','peak',2.0,'B',1.0e+300,4.94065645841247e-324,'pass','30% below the law','lower','{"series": [1, 2.5, null], "kind": {"real": true}, "big": 4611686018427387904}','2026-11-29T17:14:21.040328+00:00');
CREATE TABLE plumbline_runs (
	run TEXT NOT NULL,
	command TEXT NOT NULL,
	status TEXT NOT NULL,
	started TEXT NOT NULL,
	finished TEXT,
	environment JSON NOT NULL,
	PRIMARY KEY (run)
);
INSERT INTO "plumbline_runs" VALUES('20261129-171420-1f1745','pytest suites/','finished','2026-11-29T17:14:20.972551+00:00','2026-11-29T17:14:21.042399+00:00','{"cpu": "x"}');
CREATE TABLE plumbline_schema (
	version INTEGER NOT NULL
);
INSERT INTO "plumbline_schema" VALUES(1);
CREATE INDEX plumbline_series ON plumbline_records ("case", measure, quantity);
CREATE INDEX ix_plumbline_records_run ON plumbline_records (run);
COMMIT;
