"""Equations and schedules of guidance: x0-space, pure torch, no host."""
