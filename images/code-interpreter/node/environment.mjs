// Variables of the process: the capsule's, which stay, and a run's, which are put back after it.

// Applies changes of the capsule's variables.
export function applyCapsule({ set = {}, unset = [] }) {
  for (const name of unset) delete process.env[name]
  Object.assign(process.env, set)
}

// Sets a run's variables and returns a function that restores the earlier ones.
export function override(variables = {}) {
  const before = Object.keys(variables).map((name) => [name, process.env[name]])
  Object.assign(process.env, variables)
  return () => {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  }
}
