"""Plumbline's harness: it runs cases on real ranks, measures them, judges them and keeps the records."""
