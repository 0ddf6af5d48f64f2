"""Plumbline's harness runs cases on real ranks, measures and judges them, and keeps the records."""
