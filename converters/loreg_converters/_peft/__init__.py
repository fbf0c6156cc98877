"""How PEFT writes adapters, one noun a module. The door is :mod:`loreg_converters.peft`."""
