"""Coursework: hands out, checks, grades and ranks methods that students write."""
