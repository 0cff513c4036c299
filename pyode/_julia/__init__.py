"""The Julia engine: what crosses to Julia and back. Importing it starts nothing."""
