"""Where the text comes from: one recipe a file, the storybook first because it needs no network."""
