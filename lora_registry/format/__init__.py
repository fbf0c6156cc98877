"""The file format: container, document, rules, identity. Standard library only."""
