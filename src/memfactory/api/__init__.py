"""The functions behind `import memfactory`: train, evaluate, infer, load an agent. The command line calls them."""
