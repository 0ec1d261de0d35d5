// Preloaded by the tests while lines are counted.
import { countStarted } from "./started.ts";

countStarted();
